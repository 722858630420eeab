"""What transformers promises of generate's steps."""

import inspect

import torch
from tiny import FAMILIES
from torch import nn
from transformers import GenerationConfig, GenerationMixin

import qfpass
from qfpass.upstream.cache import cache_kwargs
from qfpass.upstream.generate import GenerationSteps, generation_settings, require_generation_steps

IDS = torch.arange(3, 15)[None]


def _compiled(model: nn.Module) -> nn.Module:
    return qfpass.compile(model, ratio=1, backend="eager", verify=False)


def test_require_generation_steps_finds_every_step_that_is_replaced() -> None:
    require_generation_steps()
    own = {name for name in vars(GenerationSteps) if not name.startswith("__")}
    optional = {"_prepare_position_ids_for_generation"}  # not in old versions
    assert own - optional <= set(dir(GenerationMixin))
    assert "stopping_criteria" in inspect.signature(GenerationMixin._sample).parameters


def test_generation_settings_come_from_the_call_before_the_model() -> None:
    model = FAMILIES["llama"]()
    model.generation_config.top_k = 7
    given = GenerationConfig(max_new_tokens=5, do_sample=True)
    settings = generation_settings(model, given, {"max_new_tokens": 6, "input_ids": IDS})
    assert (settings.top_k, settings.do_sample, settings.max_new_tokens) == (7, True, 6)
    assert model.generation_config.do_sample is not True
    assert settings.get_generation_mode().value == "sample"


def test_a_session_goes_on_where_it_stands_and_reads_nothing_twice() -> None:
    """generate slices off what a cache has seen, by the length that the cache tells."""
    model = FAMILIES["llama"]()
    compiled = _compiled(model)
    session = compiled.session()
    settings = {"max_new_tokens": 4, "do_sample": False}
    first = compiled.generate(IDS, **cache_kwargs(session), **settings)
    longer = torch.cat([first, IDS[:, :3]], 1)
    assert torch.equal(
        compiled.generate(longer, **cache_kwargs(session), **settings), model.generate(longer, **settings)
    )
    assert session.tokens_seen == longer.shape[1] + 3


def test_rows_rest_once_they_have_ended() -> None:
    """`_sample` asks its criteria after each token, and which rows have ended is what they say."""
    model = FAMILIES["llama"]()
    alone = model.generate(IDS, max_new_tokens=8, do_sample=False)
    compiled = _compiled(model)
    session = compiled.session()
    rows = torch.cat([IDS, IDS + 20])
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": int(alone[0, 13]), "pad_token_id": 0}
    out = compiled.generate(rows, **cache_kwargs(session), **settings)
    assert torch.equal(out, model.generate(rows, **settings))
    assert session.row_tokens[0] == 14
    assert session.row_tokens[1] > 14


def test_padding_on_the_right_takes_no_positions() -> None:
    compiled = _compiled(FAMILIES["llama"]())
    padded = torch.cat([IDS, torch.zeros(1, 5, dtype=torch.long)], 1)
    mask = torch.arange(17)[None] < 12
    settings = {"max_new_tokens": 6, "do_sample": False}
    out = compiled.generate(padded, attention_mask=mask.long(), **settings)
    assert torch.equal(out[:, 17:], compiled.generate(IDS, **settings)[:, 12:])


def test_drafts_are_cut_to_what_can_be_taken_back() -> None:
    """The generator of drafts is asked by `get_candidates`, for ids and, of a draft model, logits."""
    model = FAMILIES["llama"]()
    model.generation_config.eos_token_id = 0
    compiled = _compiled(model)
    asked: list[int] = []
    most = type(compiled).most_candidates

    def two(session: object, input_ids: torch.Tensor) -> int:
        asked.append(input_ids.shape[1])
        return min(2, most(compiled, session, input_ids))

    compiled.most_candidates = two
    settings = {"max_new_tokens": 12, "do_sample": False}
    read = []
    compiled.register_forward_pre_hook(
        lambda _, args, named: read.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    ids = IDS.repeat(1, 2)
    for drafts in ({"prompt_lookup_num_tokens": 6}, {"assistant_model": model}):
        out = compiled.generate(ids, **drafts, **settings)
        assert torch.equal(out, model.generate(ids, **settings))
    assert asked and max(read) == 26 and max(n for n in read if n < 24) == 3
