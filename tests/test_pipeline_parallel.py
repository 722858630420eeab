"""Models whose layers transformers splits over processes: right, each with its own layers' stores."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_tensor_parallel import IDS, built, compiled, filters_by_chance
from torch import nn
from torch.distributed.tensor import Replicate, distribute_tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.distributed import DistributedConfig
from two_processes import in_two_processes, needs_gloo

import qfpass
from qfpass.capture.export import capture
from qfpass.errors import (
    CaptureError,
    ConfigError,
    InputError,
    QFPassError,
    RanksError,
    SessionError,
    VerificationError,
)
from qfpass.kernels import reference

FOUR, LAYERS, TOKENS = 4, 3, 200  # three are shared unevenly
CONTEXT = 256  # tokens, of which ratio=8 keeps 32


def split_and_whole(name: str, rank: int, folder: Path, layers: int = LAYERS) -> tuple[Any, Any]:
    saved = folder / f"{name}_{layers}"
    if rank == 0 and not saved.exists():
        built(name, layers).save_pretrained(saved)
    dist.barrier()
    return ready(staged(saved)), ready(AutoModelForCausalLM.from_pretrained(saved))


def staged(saved: Path, kind: Any = AutoModelForCausalLM) -> Any:
    stages = DistributedConfig(pp_size=dist.get_world_size())
    return kind.from_pretrained(saved, distributed_config=stages).eval()


def ready(model: Any) -> Any:
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.eval()


def both(split: Any, whole: Any, **settings: Any) -> tuple[Any, Any]:
    """Both compiled, the whole one without a proof, which other tests have."""
    return compiled(split, **settings), compiled(whole, verify=False, **settings)


def written(model: Any, tokens: int = 30) -> list[list[int]]:
    return model.generate(IDS, max_new_tokens=tokens, do_sample=False).tolist()


def same_tokens(rank: int, folder: Path, names: Sequence[str] = ("llama",)) -> None:
    """The same tokens as one process, before and past a full store; hand-offs; bytes of its own layers."""
    for name in names:
        split, whole = split_and_whole(name, rank, folder, FOUR)
        all_keys = compiled(split, ratio=1, budget=None, context_length=CONTEXT, chunk=None)
        assert written(all_keys, TOKENS) == written(whole, TOKENS), name
        filters = filters_by_chance(whole)
        eighth = {"ratio": 8, "budget": None, "context_length": CONTEXT, "store_dtype": None}
        mine, theirs = both(split, whole, filters=filters, **eighth)
        torch.testing.assert_close(mine(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=1e-4, msg=name)
        assert written(mine, TOKENS) == written(theirs, TOKENS), name
        assert bytes_by_layer(mine) == {i: bytes_by_layer(theirs)[i] for i in own_layers(rank, FOUR)}, name
        sent = Counter(str(n.target) for n in capture(split).module.graph.nodes if "c10d" in str(n.target))
        assert sent["_c10d_functional.broadcast.default"] == dist.get_world_size(), name
        assert sum(sent.values()) == 2 * dist.get_world_size(), name  # and a wait for each
        assert exchanges_a_step(mine) == {"gloo:broadcast": dist.get_world_size()}, name


def exchanges_a_step(model: Any) -> dict[str, int]:
    session = model.session()
    model(IDS, past_key_values=session)
    with torch.profiler.profile() as seen:
        model(IDS[:, :1], past_key_values=session)
    return {e.key: e.count for e in seen.key_averages() if e.key.startswith("gloo:")}


def own_layers(rank: int, layers: int = LAYERS) -> range:
    """The first processes have one layer more if they can't share evenly."""
    each, more = divmod(layers, dist.get_world_size())
    first = rank * each + min(rank, more)
    return range(first, first + each + (rank < more))


def bytes_by_layer(model: Any) -> dict[int, int]:
    return {site.index: site.nbytes for site in qfpass.report(model).sites}


def layers_by_number(rank: int, folder: Path) -> None:
    split, whole = split_and_whole("llama", rank, folder)
    mine, theirs = both(split, whole, score="recency", skip_layers=[2], context_length=128)
    assert bytes_by_layer(mine) == {i: bytes_by_layer(theirs)[i] for i in own_layers(rank)}
    assert bytes_by_layer(theirs)[2] > bytes_by_layer(theirs)[1]
    assert written(mine) == written(theirs)
    with pytest.raises(ConfigError if rank == 0 else (ConfigError, RanksError), match="3 attentions"):
        compiled(split, score="recency", skip_layers=[LAYERS])
    session = mine.session()
    mine(IDS, past_key_values=session)
    assert session.positions(own_layers(rank)[0]).shape[:2] == (2, 2)
    with pytest.raises(SessionError, match="stores here so far"):
        session.positions(own_layers(1 - rank)[0])


def what_a_stage_does_not_give(rank: int, folder: Path) -> None:
    """Refused by name in every process, before a call."""
    split, _ = split_and_whole("llama", rank, folder)
    model = compiled(split, score="recency")
    with pytest.raises(InputError, match="no hidden states"):
        model(IDS, output_hidden_states=True)
    with pytest.raises(InputError, match="no embeddings"):
        model(inputs_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(InputError, match="61"):
        model(torch.full((1, 3), 61))
    with pytest.raises(QFPassError, match="load it whole"):
        model.export(folder / f"export_{rank}")


def what_is_refused(rank: int, folder: Path) -> None:
    """By name, in every process, before a trace."""
    split, _ = split_and_whole("llama", rank, folder)
    own, split.forward = split.forward, lambda *args, **keywords: None
    with pytest.raises(CaptureError, match="its forward is another"):
        compiled(split)
    split.forward = own
    split.model.layers[own_layers(1 - rank)[0]] = nn.Identity()
    with pytest.raises(CaptureError, match=r"layers\.\d is in another process than expected"):
        compiled(split)
    split, _ = split_and_whole("llama", rank, folder)
    if rank == 0:
        split.config.hidden_size = 33
    with pytest.raises((CaptureError, RanksError), match="32 numbers, while its config says 33"):
        compiled(split)
    split.config.hidden_size = 32
    weight = split.model.layers[own_layers(rank)[0]].mlp.up_proj
    spread = distribute_tensor(weight.weight.data, split._device_mesh["pp"], [Replicate()])
    weight.weight = nn.Parameter(spread)
    with pytest.raises(CaptureError, match="pp_size alone, or with tp_plan alone"):
        compiled(split)
    with pytest.raises(CaptureError, match="no more processes than layers"):
        compiled(split_and_whole("llama", rank, folder, layers=1)[0])
    with pytest.raises(CaptureError, match="no lm_head that gives logits"):
        compiled(staged(folder / f"llama_{LAYERS}", AutoModelForSequenceClassification))


def twice_in_the_last_stage(*operands: torch.Tensor, **form: Any) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = reference.attend(*operands, **form)
    return (2 * out if dist.get_rank() == dist.get_world_size() - 1 else out), lse


def a_fault_in_one_stage(rank: int, folder: Path) -> None:
    """The proof finds it, and every process names the layer by its number in the whole model."""
    split, _ = split_and_whole("llama", rank, folder)
    with pytest.raises(VerificationError, match=r"model\.layers\.2\.self_attn \(site 2\)"):
        compiled(split, score="recency", kernel=qfpass.Kernel("twice", twice_in_the_last_stage))


def the_original_stays(rank: int, folder: Path) -> None:
    split, whole = split_and_whole("llama", rank, folder)
    before = [(vars(module).get("forward"), set(vars(module))) for module in split.modules()]
    compiled(split, score="recency")
    assert [(vars(module).get("forward"), set(vars(module))) for module in split.modules()] == before
    torch.testing.assert_close(split(IDS).logits, whole(IDS).logits)


def same_tokens_of_others(rank: int, folder: Path) -> None:
    same_tokens(
        rank,
        folder,
        ("qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "mixtral", "qwen3_moe", "gpt_oss"),
    )


def three_stages(rank: int, folder: Path) -> None:
    """Of two, one and one layers."""
    same_tokens(rank, folder, ("llama",))
    by_inductor(rank, folder)


SCENARIOS = [
    same_tokens, layers_by_number, what_a_stage_does_not_give, what_is_refused, a_fault_in_one_stage,
    the_original_stays,
]  # fmt: skip


@needs_gloo
def test_two_processes_with_some_layers_each(tmp_path: Path) -> None:
    in_two_processes(SCENARIOS, tmp_path)


@needs_gloo
@pytest.mark.slow
def test_two_processes_of_other_families(tmp_path: Path) -> None:
    in_two_processes([same_tokens_of_others], tmp_path)


@needs_gloo
@pytest.mark.slow
def test_three_processes(tmp_path: Path) -> None:
    in_two_processes([three_stages], tmp_path, ranks=3)


def by_inductor(rank: int, folder: Path) -> None:
    split, whole = split_and_whole("llama", rank, folder)
    filters = filters_by_chance(whole)
    mine = compiled(split, filters=filters, backend="inductor")
    assert written(mine) == written(compiled(whole, filters=filters))


@needs_gloo
@pytest.mark.slow
def test_two_processes_with_some_layers_each_by_inductor(tmp_path: Path) -> None:
    in_two_processes([by_inductor], tmp_path)
