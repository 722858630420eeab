"""What the proof takes and what it refuses: every family of the census, in three dtypes, and planted errors.

    python benchmarks/proof.py [FOLDER ...] [--families NAME ...] [--out FILE]

A folder holds real weights. For each model and dtype the rewritten graph must prove as it is, and must be
refused with an error planted in it: in one attention a scale off by 2%, a window off by one or a learned sink
left out, or positions off by one from the twelfth token on. An error that changes no logit by more than
rounding is none; how many there were is told.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from qfpass.attention.find import Attention, find_attentions
from qfpass.capture.export import capture
from qfpass.errors import QFPassError, VerificationError
from qfpass.graph.captured import Captured
from qfpass.graph.in_float32 import InFloat32
from qfpass.proof.rounding import relative_difference
from qfpass.proof.text import positions_of, random_text
from qfpass.proof.verify import verify
from qfpass.rewriting.uncompressed import Uncompressed
from qfpass.tools.census.families import families, family_model
from qfpass.tools.census.tiny import CONTEXT

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CONFIGS = Path(__file__).parent.parent / "docs" / "tiny_models.json"
Planted = Callable[[Attention], Attention | None]


def scale(first: Attention) -> Attention:
    return replace(first, form=replace(first.form, scale=first.form.scale * 1.02))


def window(first: Attention) -> Attention | None:
    narrower = (first.span.window or 0) - 1
    return replace(first, span=replace(first.span, window=narrower)) if narrower > 0 else None


def sink(first: Attention) -> Attention | None:
    return replace(first, sink=None) if first.sink is not None else None


ERRORS: dict[str, Planted] = {"scale": scale, "window": window, "sink": sink}


def main() -> None:
    """Print a line a model and dtype, and how many of each outcome there were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="Hugging Face folders of real weights")
    parser.add_argument("--families", nargs="*", help="tiny models of these families alone")
    parser.add_argument("--out", type=Path, help="a JSON file for the outcomes")
    asked = parser.parse_args()
    logging.set_verbosity(50)
    outcomes, total = dict[str, dict[str, str]](), Counter[str]()
    for name, model, context in models(asked.folders, asked.families):
        for dtype in DTYPES:
            outcomes[f"{name} {dtype}"] = found = examined(model.to(dtype), context)
            total.update(f"{what}: {outcome.partition(':')[0]}" for what, outcome in found.items())
            print(name, dtype, found, flush=True)
    print(json.dumps(dict(sorted(total.items())), indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(outcomes, indent=1))


def models(folders: list[Path], names: list[str] | None) -> Iterator[tuple[str, nn.Module, int]]:
    """Name, model in float32 and context length: of the folders, else of the census."""
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        yield folder.name, model, model.config.max_position_embeddings
    fixed = json.loads(CONFIGS.read_text())
    causal = [family for kind, family in families() if kind == "causal"]
    for name in names or ([] if folders else causal):
        try:
            model = family_model("causal", name, fixed.get(name, {}))
            find_attentions(capture(model), CONTEXT)
        except Exception as error:  # a family that the census refuses, or can't build
            print(f"{name}: left out ({type(error).__name__})", flush=True)
            continue
        yield name, model, CONTEXT


def examined(model: nn.Module, context: int) -> dict[str, str]:
    """What the proof says: of the graph as it is, and of it with each error that fits."""
    try:
        captured = capture(model)
        attentions = find_attentions(captured, context)
        verify(model, captured, attentions, context)
    except QFPassError as error:
        return {"as it is": f"refused: {error}"}
    found = {"as it is": "proven"}
    for name, plant in ERRORS.items():
        wrong = next((w for a in attentions if (w := plant(a)) is not None), None)
        if wrong is not None:
            changed = [wrong if a.index == wrong.index else a for a in attentions]
            found[name] = outcome_of(model, captured, changed, context)
    with positions_off_by_one():
        found["position"] = outcome_of(model, captured, attentions, context)
    return found


@contextmanager
def positions_off_by_one() -> Iterator[None]:
    """Inside, rewritten graphs that are run eagerly are told positions that skip one."""
    right = Uncompressed.inputs

    def skipping(self: Uncompressed, ids: torch.Tensor, call_end: int = 0) -> Any:
        read, position, *rest = right(self, ids, call_end)
        assert position is not None
        return read, position + (position >= 12), *rest

    Uncompressed.inputs = skipping  # type: ignore[method-assign]
    try:
        yield
    finally:
        Uncompressed.inputs = right  # type: ignore[method-assign]


def outcome_of(model: nn.Module, captured: Captured, wrong: list[Attention], context: int) -> str:
    """Whether an error is found; "nothing" where it changes nothing that float32 could tell."""
    try:
        verify(model, captured, wrong, context)
    except VerificationError:
        return "found"
    return "nothing" if changes_nothing(captured, wrong) else "missed"


def changes_nothing(captured: Captured, wrong: list[Attention]) -> bool:
    """Whether the logits of another text, of float32, differ by no more than a thousandth."""
    ids: Any = random_text(captured, 40)
    exact = InFloat32(captured.module)(ids, positions_of(ids))
    program = Uncompressed(captured, wrong, 40, len(ids), in_float32=True)
    return relative_difference(program.read(ids, 39), exact) <= 1e-3


if __name__ == "__main__":
    main()
