"""Models whose layers are split over processes: filters, stores and sessions are those of the whole model."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_pipeline_parallel import CONTEXT, LAYERS, both, bytes_by_layer, own_layers, split_and_whole, written
from test_tensor_parallel import BUDGET, IDS, compiled, filters_by_chance
from transformers import AutoModelForCausalLM
from two_processes import in_two_processes, needs_gloo

import qfpass
from qfpass.errors import UnsupportedOpError
from qfpass.filters import store_cached


def sampled_tokens(rank: int, folder: Path) -> None:
    """The same in all processes, whatever their seeds; those of the first one's seed."""
    split, whole = split_and_whole("llama", rank, folder)
    mine, theirs = both(split, whole, score="recency")
    torch.manual_seed(rank)
    own = mine.generate(IDS, max_new_tokens=20, do_sample=True)
    torch.manual_seed(0)
    assert own.tolist() == theirs.generate(IDS, max_new_tokens=20, do_sample=True).tolist()


def filters_of_the_whole(rank: int, folder: Path) -> None:
    """Calibrated, given, read from a folder and found: those of all layers."""
    split, whole = split_and_whole("llama", rank, folder)
    expected, made = qfpass.calibrate(whole, IDS), qfpass.calibrate(split, IDS)
    assert made.source["fingerprint"] == expected.source["fingerprint"]
    for mine, theirs in zip(made.kappa, expected.kappa, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    expected.save(folder / f"filters_{rank}")
    mine, theirs = map(written, both(split, whole, filters=expected))
    assert mine == theirs
    assert written(compiled(split, filters=str(folder / f"filters_{rank}"))) == theirs
    assert compiled(split).qfpass_decoder.fingerprint == compiled(whole).qfpass_decoder.fingerprint


def trained_filters(rank: int, folder: Path) -> None:
    """Found by the whole model's fingerprint; each layer has the slots of its share."""
    split, whole = split_and_whole("llama", rank, folder)
    generator = torch.Generator().manual_seed(1)
    tensors = tuple(torch.randn(2, 2 * 16 + 2, generator=generator) for _ in range(LAYERS))
    given = qfpass.TrainedFilters(tensors, (0.5, 1.5, 1.0))
    mine, theirs = both(split, whole, filters=given)
    assert written(mine) == written(theirs)
    assert bytes_by_layer(mine) == {i: bytes_by_layer(theirs)[i] for i in own_layers(rank)}
    before, os.environ["QFPASS_CACHE"] = os.environ["QFPASS_CACHE"], f"{folder}/tuned_{rank}"
    store_cached(replace(given, source={"fingerprint": theirs.qfpass_decoder.fingerprint}))
    assert written(compiled(split)) == written(theirs)
    os.environ["QFPASS_CACHE"] = before
    with pytest.raises(UnsupportedOpError, match="in one process"):
        qfpass.train(split, None, ["text"])


def few_bits_and_half_precision(rank: int, folder: Path) -> None:
    split, whole = split_and_whole("llama", rank, folder)
    mine, theirs = both(split, whole, score="knorm", store_dtype=torch.int8)
    torch.testing.assert_close(mine(IDS).logits, theirs(IDS).logits, atol=1e-3, rtol=1e-3)
    assert mine.qfpass_decoder.identity == theirs.qfpass_decoder.identity
    eighth = {"ratio": 4, "budget": None, "context_length": CONTEXT}
    mine, theirs = both(split.bfloat16(), whole.bfloat16(), **eighth)
    assert mine.qfpass_decoder.config.store_dtype == theirs.qfpass_decoder.config.store_dtype != "auto"
    assert written(mine) == written(theirs)


def keys_that_move(rank: int, folder: Path) -> None:
    """Past the context, with scores by filters; windows and slots of all layers tell where texts go on."""
    split, whole = split_and_whole("gemma3", rank, folder)
    filters = filters_by_chance(whole)
    moving = {"filters": filters, "overflow": "rerotate", "context_length": 48, "store_dtype": None}
    mine, theirs = both(split, whole, **moving)
    assert written(mine) == written(theirs)


def sessions_of_any_number_of_processes(rank: int, folder: Path) -> None:
    """Saved by two with their layers, by two with their heads and by one; each loads all."""
    split, whole = split_and_whole("llama", rank, folder)
    by_heads = AutoModelForCausalLM.from_pretrained(folder / f"llama_{LAYERS}", tp_plan="auto").eval()
    models = [compiled(model, score="knorm") for model in (split, by_heads, whole)]
    more = IDS[:, :3]
    for number, saver in enumerate(models):
        session = saver.session()
        saver(IDS, past_key_values=session)
        if number < 2 or rank == 0:
            session.save(folder / f"session_{number}")
        dist.barrier()
        expected = saver(more, past_key_values=session).logits
        for loader in models:
            loaded = loader.session().load(folder / f"session_{number}")
            actual = loader(more, past_key_values=loaded).logits
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def pools_forks_pins_and_crop(rank: int, folder: Path) -> None:
    """Called by all processes they give what they give in one."""
    given = []
    models = both(*split_and_whole("llama", rank, folder), score="recency")
    for model in models:
        session, ids = model.session(take_back=2), IDS[:1]
        model(ids[:, :4], past_key_values=session)
        model(ids[:, 4:], past_key_values=session)
        session.crop(-2)
        pinned = model.session(budget=BUDGET - 2)
        model(ids[:, :10], past_key_values=pinned)
        pinned.pin(5, 8)
        model(ids[:, 10:], past_key_values=pinned)
        pool = model.pool(2)
        rows = [pool.join(pinned), pool.join(session)]
        after = model(ids[:, -2:], past_key_values=session.fork()).logits[0, -1:]
        stepped = pool.step({row: 7 for row in rows})
        given.append(torch.cat([after, stepped, pool.step({rows[1]: 9})]))
        if model is models[0]:
            pool.leave(rows[0]).save(folder / "left")
    torch.testing.assert_close(*given, atol=1e-4, rtol=1e-4)
    dist.barrier()
    steps = [
        m(IDS[:1, :1], past_key_values=m.session(budget=BUDGET - 2).load(folder / "left")).logits
        for m in models
    ]
    torch.testing.assert_close(*steps, atol=1e-4, rtol=1e-4)


SCENARIOS = [
    sampled_tokens, filters_of_the_whole, trained_filters, few_bits_and_half_precision, keys_that_move,
    sessions_of_any_number_of_processes, pools_forks_pins_and_crop,
]  # fmt: skip


@needs_gloo
@pytest.mark.slow
def test_two_processes_share_a_models_layers(tmp_path: Path) -> None:
    in_two_processes(SCENARIOS, tmp_path)
