"""Padded batches of texts with different numbers of images, of one size or several."""

import functools
from typing import Any

import pytest
import torch
from vision import CONTEXT, IMAGE, VISION_LANGUAGE, seen

import qfpass

Image = dict[str, torch.Tensor]
Texts = list[tuple[torch.Tensor, list[Image]]]
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


@functools.cache
def original(family: str) -> Any:
    return VISION_LANGUAGE[family]()


def compiled(family: str, **settings: Any) -> Any:
    return qfpass.compile(original(family), backend="eager", context_length=CONTEXT, **settings)


def texts(family: str, counts: tuple[int, ...]) -> Texts:
    """A text of another length for each number of images."""
    made = []
    for row, count in enumerate(counts):
        parts = [seen(family, 9 + row + 2 * n, seed=3 * row + n, start=2 + n) for n in range(count)]
        plain = torch.randint(1, 50, (1, 5 + row), generator=torch.Generator().manual_seed(row))
        made.append((torch.cat([*(ids for ids, _ in parts), plain], 1), [image for _, image in parts]))
    return made


def of_another_size() -> tuple[torch.Tensor, list[Image]]:
    """A text for Qwen2-VL with an image of half the size."""
    ids, image = seen("qwen2_vl", 14, seed=2, start=3)
    ids[:, 6:9] = 7  # three tokens fewer
    grid, patches = torch.tensor([[1, 2, 6]]), image["pixel_values"][:12]
    return ids, [{"pixel_values": patches, "image_grid_thw": grid}]


def batch(family: str, rows: Texts, side: str) -> tuple[dict[str, Any], torch.Tensor]:
    """The inputs of a call, and their mask [B, S]."""
    longest = max(ids.shape[1] for ids, _ in rows)
    ids, mask = torch.zeros(2, len(rows), longest, dtype=torch.long)
    for row, (own, _) in enumerate(rows):
        columns = slice(longest - own.shape[1], None) if side == "left" else slice(own.shape[1])
        ids[row, columns], mask[row, columns] = own[0], 1
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    images = [image for _, own in rows for image in own]
    for name in ("pixel_values", "image_grid_thw"):
        if images and name in images[0]:
            inputs[name] = torch.cat([image[name] for image in images])
    if family == "qwen2_vl" and images:
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    return inputs, mask.bool()


COUNTS = {"one each": (1, 1), "one and none": (1, 0), "two, none and one": (2, 0, 1)}
CASES = [(family, name) for family in ("llava", "qwen2_vl") for name in COUNTS] + [("qwen2_vl", "two sizes")]


def rows_of(family: str, name: str) -> Texts:
    return texts(family, COUNTS[name]) if name in COUNTS else [*texts(family, (1,)), of_another_size()]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "name"), CASES)
@torch.no_grad()
def test_rows_are_those_of_the_original(family: str, name: str, side: str) -> None:
    model = every_key(family)
    inputs, mask = batch(family, rows_of(family, name), side)
    expected = original(family)(**inputs).logits[mask]
    torch.testing.assert_close(model(**inputs).logits[mask], expected, atol=1e-4, rtol=1e-4)
    if side == "left":
        written = [each.generate(**inputs, **GREEDY).tolist() for each in (original(family), model)]
        assert written[1] == written[0]


@functools.cache
def every_key(family: str) -> Any:
    return compiled(family)


@pytest.mark.parametrize(("family", "name"), [("llava", "two, none and one"), ("qwen2_vl", "two sizes")])
@torch.no_grad()
def test_rows_past_full_stores_are_each_as_if_alone(family: str, name: str) -> None:
    model = compiled(family, budget=12, chunk=8, score="random")
    rows = rows_of(family, name)
    inputs, _ = batch(family, rows, "left")
    together = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    for row, each in enumerate(rows):
        alone, _ = batch(family, [each], "left")
        assert model.generate(**alone, **GREEDY)[0, each[0].shape[1] :].tolist() == together[row].tolist()
