"""Vision-language models on sessions: images, chats and eviction, against the original."""

import functools
from itertools import pairwise
from typing import Any

import pytest
import torch
from often import often
from torch import nn
from vision import CONTEXT, EMBED, IMAGE, VISION_LANGUAGE, seen

import qfpass
from qfpass.errors import CaptureError, InputError, PackageError

IN_BOTH_DIRECTIONS = ("gemma3", "paligemma")
CAUSAL = [family for family in VISION_LANGUAGE if family not in IN_BOTH_DIRECTIONS]
OFTEN = ("llava", "idefics3", "internvl", "qwen2_vl")  # of each kind of merging images one
GREEDY = {"do_sample": False}


@functools.cache
def kept(family: str) -> tuple[nn.Module, Any]:
    """A tiny model, and what it compiles to with every key kept."""
    original = VISION_LANGUAGE[family]()
    return original, qfpass.compile(original, backend="eager", context_length=CONTEXT)


def bounded(family: str, **settings: Any) -> Any:
    """The model of `kept` with 16 slots."""
    chosen = {"budget": 16, "chunk": 8, "score": "recency", "backend": "eager", "context_length": CONTEXT}
    return qfpass.compile(kept(family)[0], **(chosen | settings))


@pytest.mark.parametrize("family", often(OFTEN, CAUSAL))
@torch.no_grad()
def test_texts_with_images_are_read_and_go_on_as_by_the_original(family: str) -> None:
    original, model = kept(family)
    ids, image = seen(family)
    expected = original(input_ids=ids, **image).logits
    torch.testing.assert_close(model(input_ids=ids, **image).logits, expected, atol=1e-4, rtol=1e-4)
    written = [
        each.generate(input_ids=ids, **image, max_new_tokens=60, **GREEDY) for each in (original, model)
    ]
    assert written[1].tolist() == written[0].tolist()


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_a_chat_goes_on_with_and_without_a_new_image(family: str) -> None:
    original, model = kept(family)
    session = model.session()
    (first, image), (second, new_image) = seen(family, 20), seen(family, 16, seed=1, start=3)
    answer = model.generate(input_ids=first, **image, past_key_values=session, max_new_tokens=5, **GREEDY)
    question = torch.randint(1, 50, (1, 6), generator=torch.Generator().manual_seed(2))
    whole, pixels, sizes = answer, [image["pixel_values"]], [image.get("image_grid_thw")]
    for turn, given in ((question, {}), (second, new_image)):
        whole = torch.cat([whole, turn], 1)
        named = dict(given)
        if given:
            pixels.append(given["pixel_values"])
            sizes.append(given.get("image_grid_thw"))
        kinds = (whole == IMAGE).long()
        if family == "qwen2_vl":
            named |= {"mm_token_type_ids": kinds} if given else {}
        written = model.generate(
            input_ids=whole, **named, past_key_values=session, max_new_tokens=5, **GREEDY
        )
        everything: dict[str, Any] = {"pixel_values": torch.cat(pixels)}
        if family == "qwen2_vl":
            everything |= {"image_grid_thw": torch.cat(sizes), "mm_token_type_ids": kinds}
        expected = original.generate(input_ids=whole, **everything, max_new_tokens=5, **GREEDY)
        assert written.tolist() == expected.tolist()
        whole = written


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_past_a_full_store_it_is_the_original_with_evicted_keys_masked(family: str) -> None:
    """Stores of 16 slots by recency, read token by token, are a window over the last tokens and the sinks."""
    original, model = kept(family)[0], bounded(family, sinks=0, recent=15)
    ids, image = seen(family, 40)
    session, parts = model.session(), []
    ends = (0, 12, *range(13, 41))  # the image is among the first
    for a, b in pairwise(ends):
        named = dict(image) if a == 0 else {}
        if a == 0 and "mm_token_type_ids" in image:
            named["mm_token_type_ids"] = image["mm_token_type_ids"][:, :b]
        parts.append(model(input_ids=ids[:, a:b], **named, past_key_values=session).logits)
    assert sorted(session.positions(0)[0, 0].tolist()) == list(range(24, 40))
    place = torch.arange(40)
    distance = place[:, None] - place
    shown = (distance >= 0) & (distance < 16)
    mask = torch.zeros(40, 40).masked_fill(~shown, torch.finfo(torch.float32).min)[None, None]
    if family == "qwen2_vl":  # it can't count positions from such a mask
        image |= {"position_ids": original.model.get_rope_index(ids, **image)[0]}
    expected = original(input_ids=ids, attention_mask=mask, **image).logits
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_text_model_that_is_told_of_logits_gives_all_hidden_values() -> None:
    """LLaVA-OneVision's forward hands the argument on."""
    original, model = kept("llava")
    embeddings = original.get_input_embeddings()(seen("llava")[0])
    both = [each.model.language_model for each in (original, model)]
    expected, actual = (each(inputs_embeds=embeddings, logits_to_keep=1).last_hidden_state for each in both)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_beams_see_the_image_in_every_row() -> None:
    original, model = kept("qwen2_vl")
    ids, image = seen("qwen2_vl", 20)
    settings = {"num_beams": 2, "max_new_tokens": 6, **GREEDY}
    written = [each.generate(input_ids=ids, **image, **settings).tolist() for each in (original, model)]
    assert written[1] == written[0]
    image |= {
        "image_grid_thw": torch.tensor([[1, 4, 6], [1, 2, 6]]),
        "pixel_values": image["pixel_values"].repeat(2, 1)[:36],
    }
    with pytest.raises(InputError, match="different sizes"):
        model.generate(input_ids=ids, **image, **settings)


@torch.no_grad()
def test_sessions_of_one_model_with_axes_do_not_disturb_each_other() -> None:
    model = bounded("qwen2_vl")
    ids, image = seen("qwen2_vl", 20)
    plain = ids.clone().masked_fill(ids == IMAGE, 7)
    alone = model.generate(input_ids=ids, **image, max_new_tokens=10, **GREEDY)
    session, other = model.session(), model.session()
    model(input_ids=ids, **image, past_key_values=session)
    model(input_ids=plain, past_key_values=other)
    assert session.rows[0].axes_ahead == -3
    assert other.rows[0].axes_ahead == 0
    token = alone[:, 20:21]
    for step in range(9):
        model(input_ids=token, past_key_values=other)
        logits = model(input_ids=token, past_key_values=session).logits
        token = logits[:, -1:].argmax(-1)
        assert int(token) == int(alone[0, 21 + step])
    assert session.fork().rows == session.rows


@torch.no_grad()
def test_images_whose_tokens_see_later_ones_are_refused_by_name() -> None:
    with pytest.raises(CaptureError, match="both directions"):
        kept("paligemma")
    original, model = kept("gemma3")
    ids, image = seen("gemma3")
    session = model.session()
    with pytest.raises(InputError, match="in both directions"):
        model(input_ids=ids, **image, past_key_values=session)
    assert session.tokens_seen == 0
    plain = ids.masked_fill(ids == IMAGE, 7)  # without an image it is a text model as others are
    expected = original(input_ids=plain).logits
    torch.testing.assert_close(model(input_ids=plain).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_model_that_reads_no_text_alone_is_refused() -> None:
    original = VISION_LANGUAGE["llava"]()

    class AlwaysSees(type(original)):  # type: ignore[misc]
        def forward(self, pixel_values: Any, features: Any, input_ids: Any = None, **named: Any) -> Any:
            return super().forward(input_ids=input_ids, pixel_values=pixel_values, **named)

    original.__class__ = AlwaysSees
    with pytest.raises(
        CaptureError, match=r"AlwaysSees can't read text alone.*needs pixel_values and features"
    ):
        qfpass.compile(original, backend="eager")


def test_what_cannot_be_is_refused_by_name() -> None:
    _, model = kept("qwen2_vl")
    ids, image = seen("qwen2_vl")
    with pytest.raises(InputError, match="leave position_ids out"):
        model(input_ids=ids, **image, position_ids=torch.arange(30)[None])
    with pytest.raises(InputError, match="without image_grid_thw"):
        model(input_ids=ids, pixel_values=image["pixel_values"])
    with pytest.raises(InputError, match="output_attentions"):
        model(input_ids=ids, output_attentions=True)
    for drafts in ({"use_mtp": True}, {"assistant_early_exit": 1}):
        with pytest.raises(InputError, match="vision-language"):
            model.generate(input_ids=ids, **image, max_new_tokens=3, **drafts, **GREEDY)
    with pytest.raises(InputError, match="reads ids alone"):
        model.pool(2)
    with pytest.raises(PackageError, match="isn't exported"):
        model.export("nowhere")
    with pytest.raises(qfpass.QFPassError, match="one axis"):
        bounded("qwen2_vl", overflow="rerotate")


def test_the_original_is_left_as_it_was() -> None:
    original, model = kept("llava")
    assert type(original).__name__ == type(model).__name__
    assert original.model.language_model is not model.model.language_model
    assert original.model.vision_tower is model.model.vision_tower
    assert qfpass.report(model).sites
    assert model.get_input_embeddings().weight.shape[1] == EMBED
