"""Models that accelerate spreads over two devices of one process: right, each layer's store with its weights.

The devices stand in for GPUs; see `host_device`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from host_device import CARDS, in_a_process, needs_ninja
from host_inductor import OPTIONS, host_inductor
from test_tensor_parallel import IDS, built, filters_by_chance
from torch import nn
from transformers import AutoModelForCausalLM

import qfpass
from qfpass.errors import CaptureError, InputError, PackageError

LAYERS, TOKENS, CONTEXT = 4, 100, 256  # tokens, of which ratio=8 keeps 32
HALVES, IN_TURN = (0, 0, 1, 1), (0, 1, 0, 1)  # the device of each layer


def spread_and_whole(name: str, folder: Path, cards: Sequence[int] = HALVES) -> tuple[Any, Any]:
    """A model over both devices, and the same on the processor."""
    saved = folder / name
    if not saved.exists():
        built(name, LAYERS).save_pretrained(saved)
    # Of the ways to run experts that can be traced, the one that counts no tokens: the stand-in device can't.
    loaded = partial(AutoModelForCausalLM.from_pretrained, saved, experts_implementation="batched_mm")
    whole = loaded()
    paths = {path: CARDS[cards[-1]] for path in ("model.norm", "lm_head")}
    paths |= {path: CARDS[0] for path, _ in whole.model.named_children() if path not in ("layers", "norm")}
    paths = {
        path if "." in path or path == "lm_head" else f"model.{path}": card for path, card in paths.items()
    }
    paths |= {f"model.layers.{i}": CARDS[card] for i, card in enumerate(cards)}
    if whole.config.tie_word_embeddings:
        paths["lm_head"] = CARDS[0]
    return ready(loaded(device_map=paths)), ready(whole)


def ready(model: Any) -> Any:
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.eval()


def compiled(model: nn.Module, **settings: Any) -> Any:
    given = {"ratio": 8, "context_length": CONTEXT, "store_dtype": None, "backend": "eager", **settings}
    return qfpass.compile(model, **given)


def written(model: Any, tokens: int = TOKENS) -> list[list[int]]:
    ids = IDS.to(next(model.parameters()).device)
    return model.generate(ids, max_new_tokens=tokens, do_sample=False).tolist()


def same_tokens(folder: Path, names: Sequence[str] = ("llama",), cards: Sequence[int] = HALVES) -> None:
    """With every key, and past a full store; logits lie where the model gives them."""
    for name in names:
        spread, whole = spread_and_whole(name, folder, cards)
        assert {str(p.device) for p in spread.parameters()} == set(CARDS)
        all_keys, ids = compiled(spread, ratio=1), IDS.to(CARDS[0])
        assert all_keys(ids).logits.device == spread(ids).logits.device == ids.device, name
        torch.testing.assert_close(all_keys(ids).logits, spread(ids).logits, msg=name)
        assert written(all_keys) == written(whole), name
        mine, theirs = compiled(spread, score="random"), compiled(whole, score="random")
        assert written(mine) == written(theirs), name
        session = mine.session()
        mine(ids, past_key_values=session)
        assert [str(next(iter(s)).device) for s in session.stores] == [CARDS[card] for card in cards], name


def filters(folder: Path) -> None:
    """Calibrated and found on both devices, those of the whole model."""
    spread, whole = spread_and_whole("llama", folder)
    made, expected = qfpass.calibrate(spread, IDS), qfpass.calibrate(whole, IDS)
    assert made.source["fingerprint"] == expected.source["fingerprint"]
    for mine, theirs in zip(made.filters, expected.filters, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert written(compiled(spread, filters=expected)) == written(compiled(whole, filters=expected))
    found = compiled(spread).qfpass_decoder.filters
    assert found is not None and len(found.filters) == LAYERS
    generator = torch.Generator().manual_seed(1)
    tensors = tuple(torch.randn(2, 2 * 16 + 2, generator=generator) for _ in range(LAYERS))
    trained = qfpass.TrainedFilters(tensors, (0.5, 1.5, 1.0, 1.0))
    assert written(compiled(spread, filters=trained)) == written(compiled(whole, filters=trained))


def sessions(folder: Path) -> None:
    """Saved, loaded by a model on one device, forked, pinned, cropped, in a pool: as on one device."""
    spread, whole = spread_and_whole("llama", folder)
    given = filters_by_chance(whole)
    models = [compiled(model, filters=given) for model in (spread, whole)]
    ends = []
    for model in models:
        session = model.session(take_back=4)
        model(IDS[:1, :10], past_key_values=session)
        session.pin(4, 7)
        model(IDS[:1], past_key_values=session)
        fork = session.fork()
        model(IDS[1:, :3], past_key_values=fork)
        model(IDS[1:, :1], past_key_values=fork)
        fork.crop(-4)
        ends.append(model(IDS[1:, :5], past_key_values=fork).logits.cpu())
        pool = model.pool(rows=2)
        rows = [pool.join(fork), pool.join(model.session())]
        ends.append(pool.step({rows[0]: 5, rows[1]: 7}).cpu())
        ends.append(pool.step({rows[1]: 9}).cpu())
        ends.append(session.positions(3).cpu())
        session.save(folder / f"{model.device.type}.safetensors")
    for mine, theirs in zip(ends[: len(ends) // 2], ends[len(ends) // 2 :], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    for model in models:
        for file in ("host", "cpu"):
            session = model.session(take_back=4).load(folder / f"{file}.safetensors")
            ends.append(model(IDS[:1, :2], past_key_values=session).logits.cpu())
    for logits in ends[-3:]:
        torch.testing.assert_close(logits, ends[-4], atol=1e-4, rtol=1e-4)


def rows_and_beams(folder: Path) -> None:
    """Padded rows step at their own lengths; beams reorder stores on both devices."""
    spread, whole = spread_and_whole("llama", folder)
    mask = torch.ones_like(IDS)
    mask[0, :9] = 0
    mine, theirs = compiled(spread, score="random"), compiled(whole, score="random")
    for settings in ({"attention_mask": mask}, {"num_beams": 2}):
        told = [
            model.generate(IDS.to(model.device), max_new_tokens=40, do_sample=False, **settings).tolist()
            for model in (mine, theirs)
        ]
        assert told[0] == told[1], settings


def other_settings(folder: Path) -> None:
    """Keys that move, and eight bits."""
    spread, whole = spread_and_whole("llama", folder)
    for settings in (
        {"ratio": None, "budget": 16, "context_length": 64, "overflow": "rerotate", "score": "recency"},
        {"store_dtype": torch.int8, "score": "random"},
    ):
        assert written(compiled(spread, **settings)) == written(compiled(whole, **settings)), settings


def one_device_a_graph(folder: Path) -> None:
    """What a backend compiles lies on one device, in chunks and in steps."""
    seen = list[set[torch.device]]()

    def backend(module: Any, example: Sequence[Any]) -> Any:
        tensors = [*module.parameters(), *module.buffers(), *example]
        seen.append({t.device for t in tensors if isinstance(t, torch.Tensor)})
        return module

    spread, whole = spread_and_whole("llama", folder, IN_TURN)
    assert written(compiled(spread, backend=backend, score="random")) == written(
        compiled(whole, score="random")
    )
    assert {len(devices) for devices in seen} == {1} and len(set.union(*seen)) == len(CARDS)


def by_inductor(folder: Path) -> None:
    """Piece by piece, each on its device; past a full store, and with rows of different lengths."""
    host_inductor()
    spread, whole = spread_and_whole("llama", folder)
    mine, theirs = (
        compiled(spread, score="random", backend="inductor", options=OPTIONS),
        compiled(whole, score="random"),
    )
    assert written(mine) == written(theirs)
    used = {each.name: each.state for each in qfpass.report(mine).optimisations}
    assert used["piecewise"] == used["capture_cache"] == "on" and used["replay"] == "not used"
    again = compiled(spread, score="random", backend="inductor", options=OPTIONS)  # from the kept graph
    assert written(again) == written(theirs)


def what_is_refused(folder: Path) -> None:
    spread, _ = spread_and_whole("llama", folder)
    mine = compiled(spread, score="recency")
    with pytest.raises(PackageError, match="several devices"):
        mine.export(folder / "export")
    with pytest.raises(InputError, match="several devices"):
        mine(IDS, output_hidden_states=True)
    with pytest.raises(InputError, match="several devices"):
        mine(inputs_embeds=torch.zeros(1, 3, 32))
    for drafts, why in (({"use_mtp": True}, "several devices"), ({"assistant_early_exit": 1}, "or devices")):
        with pytest.raises(InputError, match=why):
            mine.generate(IDS[:1].to(CARDS[0]), max_new_tokens=3, do_sample=False, **drafts)
    spread.model.layers[3].to("cpu")
    with pytest.raises(CaptureError, match="devices of one kind"):
        compiled(spread)
    saved, card = folder / "llama", CARDS[0]
    paths = {"model.embed_tokens": card, "model.rotary_emb": card, "model.norm": card, "lm_head": card}
    for place in ("cpu", "disk"):
        paths |= {f"model.layers.{i}": card if i else place for i in range(LAYERS)}
        waiting = AutoModelForCausalLM.from_pretrained(saved, device_map=paths, offload_folder=folder / "off")
        with pytest.raises(CaptureError, match=r"offloaded: the weights of model\.layers\.0"):
            compiled(waiting.eval())


def same_tokens_of_others(folder: Path) -> None:
    same_tokens(
        folder, ("qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "mixtral", "gpt_oss"), IN_TURN
    )


SCENARIOS = [same_tokens, one_device_a_graph, what_is_refused]
SLOW = [filters, sessions, rows_and_beams, other_settings, by_inductor, same_tokens_of_others]


@needs_ninja
def test_on_two_devices(tmp_path: Path) -> None:
    in_a_process(SCENARIOS, tmp_path)


@needs_ninja
@pytest.mark.slow
@pytest.mark.parametrize("scenario", SLOW, ids=lambda scenario: scenario.__name__)
def test_on_two_devices_at_length(scenario: Callable[[Path], None], tmp_path: Path) -> None:
    in_a_process([scenario], tmp_path)
