"""Drafts by a checkpoint's own layers for further tokens, through transformers' use_mtp."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import run_plainly
from drafted import Calls, require_choices
from rows import text
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM

import qfpass
from qfpass.errors import InputError

modeling_layers = pytest.importorskip("transformers.modeling_layers")
if not hasattr(modeling_layers, "MtpModel"):
    pytest.skip("this version of transformers has no use_mtp", allow_module_level=True)

LAYERS = 2
IDS = text(7).repeat(1, 5) % 7 + 1  # of few ids, so that random layers draft some rightly
GREEDY = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture(scope="module", params=[1, 2], ids=["one layer", "two layers"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nn.Module]:
    """A tiny model from a checkpoint with layers for further tokens, some of whose drafts are right."""
    with pytest.MonkeyPatch.context() as patch:
        # Which layers of a checkpoint are these is known by number, of the released models alone.
        numbered = [r"model\.layers\.[23]\."]
        patch.setattr(Glm4MoeForCausalLM, "_keys_to_ignore_on_load_unexpected", numbered)
        for seed in range(20):  # random layers, so that it is chance whether any is
            model = saved_and_loaded(request.param, seed, tmp_path_factory.mktemp("checkpoint"))
            with Calls(model) as calls:
                out = model.generate(IDS, use_mtp=True, **GREEDY)
            if calls.confirms_some(out):
                break
        yield model


def saved_and_loaded(layers: int, seed: int, folder: Path) -> Any:
    torch.manual_seed(seed)
    config = Glm4MoeConfig(
        hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=8, first_k_dense_replace=5,
        max_position_embeddings=256, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        initializer_range=0.2, pad_token_id=None, bos_token_id=None, eos_token_id=None, num_mtp_layers=layers,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    _add_layers(modeling_layers.MtpModel(model, layers), folder / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def _add_layers(drafts: nn.Module, path: Path) -> None:
    state = load_file(path)
    for name, value in drafts.state_dict().items():
        if found := re.fullmatch(r"layers\.(\d+)\.(?:mtp_block\.)?(.*)", name):
            state[f"model.layers.{LAYERS + int(found[1])}.{found[2]}"] = value.clone()
    save_file(state, path, {"format": "pt"})


def compiled(model: nn.Module, **settings: Any) -> nn.Module:
    return run_plainly(qfpass.compile(model, backend="eager", verify=False, **settings))


@pytest.fixture(scope="module")
def model(original: nn.Module) -> nn.Module:
    return compiled(original, ratio=1)


def test_it_writes_what_greedy_decoding_writes_with_the_originals_drafts(
    original: nn.Module, model: nn.Module
) -> None:
    with Calls(original) as calls:
        wanted = original.generate(IDS, use_mtp=True, **GREEDY)
    with Calls(model) as mine:
        out = model.generate(IDS, use_mtp=True, **GREEDY)
    assert torch.equal(out, wanted) and torch.equal(out, original.generate(IDS, **GREEDY))
    assert calls.confirms_some(out)
    assert mine.seen == calls.seen and mine.seen[1] == (35, 1 + original.config.num_mtp_layers)


def test_past_a_full_store_each_token_is_the_models_choice_in_these_pieces(original: nn.Module) -> None:
    model = compiled(original, budget=24, chunk=8, score="random")
    with Calls(model) as calls:
        out = model.generate(IDS, use_mtp=True, **GREEDY)
    require_choices(model, calls.pieces(out), out, IDS.shape[1], take_back=6)


def test_a_session_that_has_read_before_is_refused(model: nn.Module) -> None:
    session = model.session()
    model(IDS, past_key_values=session)
    with pytest.raises(InputError, match=r"use_mtp reads.*has read 35 tokens before"):
        model.generate(torch.cat([IDS, IDS], 1), past_key_values=session, use_mtp=True, **GREEDY)
    assert session.tokens_seen == 35
