"""Drafts by a model's own first layers, through transformers' assistant_early_exit."""

from typing import Any

import pytest
import torch
from bounded import run_plainly
from drafted import Calls, require_choices, with_end
from rows import text
from tiny import FAMILIES
from torch import nn
from transformers import AutoModelForCausalLM, OPTConfig

import qfpass
from qfpass.errors import InputError
from qfpass.filters import TrainedFilters
from qfpass.model.early_exit import first_layers

IDS = text(7).repeat(1, 5)
GREEDY = {"max_new_tokens": 24, "do_sample": False}


ORIGINAL = with_end(FAMILIES["llama"](layers=3))


def compiled(model: nn.Module, **settings: Any) -> nn.Module:
    return run_plainly(qfpass.compile(model, **({"backend": "eager", "verify": False} | settings)))


MODEL = compiled(ORIGINAL, ratio=1)


def test_it_writes_what_greedy_decoding_writes_with_the_first_layers_drafts() -> None:
    with Calls(MODEL) as calls:
        out = MODEL.generate(IDS, assistant_early_exit=2, **GREEDY)
    assert torch.equal(out, ORIGINAL.generate(IDS, **GREEDY))
    with Calls(MODEL) as others:
        MODEL.generate(IDS, assistant_model=first_layers(ORIGINAL, 2, 3), **GREEDY)
    assert calls.seen == others.seen and (40, 6) in calls.seen


def test_past_a_full_store_each_token_is_the_models_choice_in_these_pieces() -> None:
    model = compiled(ORIGINAL, budget=24, chunk=8, score="random")
    with Calls(model) as calls:
        out = model.generate(IDS, assistant_early_exit=2, **GREEDY)
    assert calls.confirms_some(out)
    require_choices(model, calls.pieces(out), out, IDS.shape[1], take_back=6)


def test_the_first_layers_are_compiled_once_with_the_models_settings_and_filters() -> None:
    model = compiled(ORIGINAL, budget=24, chunk=8, score="published", skip_layers=[0, 2])
    out = model.generate(IDS, assistant_early_exit=2, **GREEDY)
    assert out.shape[1] > IDS.shape[1]
    decoder, first = model.qfpass_decoder, model.first_layers(2)
    assert model.first_layers(2) is first
    assert first.qfpass_decoder.sizes.slots == decoder.sizes.slots
    assert len(first.qfpass_decoder.whole_layers) == 2
    for mine, its in zip(first.qfpass_decoder.filters.filters, decoder.filters.filters, strict=False):
        assert torch.equal(mine, its)
    assert [layer.rule.is_bounded for layer in first.qfpass_decoder.whole_layers] == [False, True]
    assert {p.data_ptr() for p in first.parameters()} < {p.data_ptr() for p in ORIGINAL.parameters()}


def test_the_first_layers_of_a_changed_model_are_its_own() -> None:
    """And those of a model that was changed back are there already."""
    original = with_end(FAMILIES["llama"](layers=3))
    model = compiled(original, ratio=1, verify=True)  # so that a state is known again
    before, norm = model.first_layers(1), original.model.norm
    epsilon, norm.variance_epsilon = norm.variance_epsilon, 0.5
    model.follow_changes()
    assert model.first_layers(1) is not before
    norm.variance_epsilon = epsilon
    model.follow_changes()
    assert model.first_layers(1) is before


def test_trained_filters_are_those_of_the_first_layers() -> None:
    """Also where nothing is evicted, so that no filters are read."""
    generator = torch.Generator().manual_seed(0)
    filters = TrainedFilters(
        tuple(torch.randn(2, 34, generator=generator) for _ in range(3)), (1.3, 1.2, 0.5)
    )
    model = compiled(ORIGINAL, budget=24, filters=filters)
    first = model.first_layers(2).qfpass_decoder.filters
    assert first.shares == pytest.approx((1.04, 0.96)) and torch.equal(first.filters[1], filters.filters[1])
    whole = compiled(ORIGINAL, ratio=1, filters=filters)
    assert torch.equal(
        whole.generate(IDS, assistant_early_exit=2, **GREEDY), ORIGINAL.generate(IDS, **GREEDY)
    )


def test_layers_that_stand_deeper_are_found() -> None:
    opt = AutoModelForCausalLM.from_config(
        OPTConfig(
            hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=61,
            max_position_embeddings=256, word_embed_proj_dim=32, init_std=0.2,
        )
    ).eval()  # fmt: skip
    first = first_layers(opt, 2, 3)
    assert len(first.model.decoder.layers) == 2 and len(opt.model.decoder.layers) == 3
    assert first.model.decoder.layers[1] is opt.model.decoder.layers[1]
    assert not torch.equal(first(IDS).logits, opt(IDS).logits)


def test_a_model_whose_own_settings_ask_for_it() -> None:
    original = with_end(FAMILIES["llama"](layers=3))
    original.generation_config.assistant_early_exit = 2
    model = compiled(original, ratio=1)
    assert torch.equal(model.generate(IDS, **GREEDY), ORIGINAL.generate(IDS, **GREEDY))


def test_first_layers_compute_what_the_original_computes_with_fewer() -> None:
    whole = ORIGINAL.model.config.num_hidden_layers
    ORIGINAL.model.config.num_hidden_layers = 2
    try:
        wanted = ORIGINAL(IDS).logits
    finally:
        ORIGINAL.model.config.num_hidden_layers = whole
    torch.testing.assert_close(first_layers(ORIGINAL, 2, 3)(IDS).logits, wanted)
    assert len(ORIGINAL.model.layers) == ORIGINAL.config.num_hidden_layers == 3


def test_shares_of_first_layers_are_1_on_average() -> None:
    filters = TrainedFilters(tuple(torch.zeros(2, 34) for _ in range(3)), (0.5, 1.0, 1.5))
    assert filters.of_first(2).shares == pytest.approx((2 / 3, 4 / 3))


@pytest.mark.parametrize("layers", [0, 3, 2.0, "2", True])
def test_layers_that_there_are_not(layers: Any) -> None:
    session = MODEL.session()
    with pytest.raises(InputError, match="from 1 to 2, fewer than the model's 3"):
        MODEL.generate(IDS, assistant_early_exit=layers, past_key_values=session, **GREEDY)
    assert session.tokens_seen == 0


def test_a_model_whose_layers_are_not_known() -> None:
    with pytest.raises(InputError, match=r"0 of its lists.*attentions, 4.*assistant_model"):
        first_layers(ORIGINAL, 1, 4)


def test_of_several_rows_it_is_refused_before_layers_are_compiled() -> None:
    model = compiled(ORIGINAL, ratio=1)
    with pytest.raises(ValueError, match="batch_size = 1"):
        model.generate(IDS.repeat(2, 1), assistant_early_exit=2, **GREEDY)
    assert not model.qfpass_early_exits._made
