"""The code of docs/vision_language.md runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from vision import CONTEXT, VISION_LANGUAGE, seen

import qfpass

PAGE = Path(__file__).parents[2] / "docs" / "vision_language.md"


def test_the_page_s_code_runs_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(model: Any, ratio: float) -> Any:
        return whole(
            model, ratio=ratio / 4, score="recency", backend="eager", store_dtype=None, context_length=CONTEXT
        )

    def processor(**_: Any) -> dict[str, torch.Tensor]:
        ids, image = seen("llava", 20)
        return {"input_ids": ids, **image}

    whole = qfpass.compile
    monkeypatch.setattr(qfpass, "compile", compile)
    for auto, made in (
        (transformers.AutoModelForImageTextToText, VISION_LANGUAGE["llava"]()),
        (transformers.AutoProcessor, processor),
    ):
        monkeypatch.setattr(auto, "from_pretrained", lambda name, made=made: made)
    second, image = seen("llava", 12, seed=1, start=3)
    names: dict[str, Any] = {
        "name": "tiny", "image": None, "prompt": "", "torch": torch, "question": second[:, -4:],
        "turn_with_image": second, "new_image": image["pixel_values"],
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for block in blocks:
        exec(block.replace("max_new_tokens=100", "max_new_tokens=5, do_sample=False"), names)
    assert names["ids"].shape == (1, 20 + 5 + 4 + 5 + 12 + 5)
    assert names["session"].columns == names["ids"].shape[1] - 1
