"""Models that transformers splits over two processes: right, with the collectives of its own forward."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import recipes
import test_recipes
import torch
import torch.distributed as dist
from tiny import FAMILIES, FORMS
from torch import nn
from transformers import AutoModelForCausalLM, DeepseekV3Config, MixtralConfig, Qwen3MoeConfig
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES
from two_processes import in_two_processes, needs_gloo

import qfpass
from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.errors import CaptureError, ConfigError, InputError, RanksError, SessionError, UnsupportedOpError

BUDGET, TOKENS = 16, 60
WHOLE_HEADS = ("gpt_oss", "deepseek_v3")  # whose experts alone transformers splits
IDS = torch.randint(1, 50, (2, 24), generator=torch.Generator().manual_seed(0))
MOE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": 256, "initializer_range": 0.2,
    "eos_token_id": None, "bos_token_id": None, "pad_token_id": None, "moe_intermediate_size": 16,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "n_routed_experts": 4,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip


def built(name: str, layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    kinds = {"mixtral": MixtralConfig, "qwen3_moe": Qwen3MoeConfig, "deepseek_v3": DeepseekV3Config}
    if builder := {**FAMILIES, **FORMS}.get(name):
        return builder(layers=layers)
    sizes = {**MOE, "num_hidden_layers": layers, "num_key_value_heads": 4 if name == "deepseek_v3" else 2}
    return AutoModelForCausalLM.from_config(kinds[name](**sizes)).eval()


def split_and_whole(name: str, rank: int, folder: Path) -> tuple[Any, Any]:
    saved = folder / name
    if rank == 0 and not saved.exists():
        built(name).save_pretrained(saved)
    dist.barrier()
    whole = AutoModelForCausalLM.from_pretrained(saved).eval()
    split = AutoModelForCausalLM.from_pretrained(saved, tp_plan="auto").eval()
    for model in (whole, split):
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return split, whole


def compiled(model: nn.Module, **settings: Any) -> Any:
    return qfpass.compile(model, **{"budget": BUDGET, "chunk": 8, "backend": "eager", **settings})


def written(model: Any) -> torch.Tensor:
    """Tokens on many of which the store is full."""
    return model.generate(IDS, max_new_tokens=TOKENS, do_sample=False)


def filters_by_chance(model: Any) -> qfpass.QFilters:
    """Norms wouldn't do as scores: a token's keys have the same norm wherever it stands, but for rounding."""
    attentions = find_attentions(capture(model), None)
    generator = torch.Generator().manual_seed(2)
    return qfpass.QFilters(
        tuple(torch.randn(a.kv_heads, a.head_dim, generator=generator) for a in attentions)
    )


def same_tokens(rank: int, folder: Path, names: Sequence[str] = ("llama",)) -> None:
    """The same tokens as one process, past a full store, half of the bytes, and no more collectives."""
    for name in names:
        split, whole = split_and_whole(name, rank, folder)
        filters = filters_by_chance(whole)
        mine, theirs = compiled(split, filters=filters), compiled(whole, filters=filters)
        torch.testing.assert_close(mine(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=1e-4, msg=name)
        assert written(mine).tolist() == written(theirs).tolist(), name
        if name in WHOLE_HEADS:
            assert qfpass.report(mine).nbytes == qfpass.report(theirs).nbytes
            continue
        assert 2 * qfpass.report(mine).nbytes == qfpass.report(theirs).nbytes, name
        sent = Counter(str(n.target) for n in capture(split).module.graph.nodes if "c10d" in str(n.target))
        assert sent["_c10d_functional.all_reduce.default"] == 1 + 2 * split.config.num_hidden_layers, name
        assert sent["_c10d_functional.all_gather_into_tensor.default"] == 1, name


def nothing_compressed(rank: int, folder: Path) -> None:
    split, whole = split_and_whole("llama", rank, folder)
    model = qfpass.compile(split, backend="eager")
    torch.testing.assert_close(model(IDS).logits, whole(IDS).logits, atol=1e-4, rtol=1e-4)
    assert written(model).tolist() == written(whole).tolist()


def sampled_tokens(rank: int, folder: Path) -> None:
    """The same in all processes, whatever their seeds; those of the first one's seed."""
    split, whole = split_and_whole("llama", rank, folder)
    torch.manual_seed(rank)
    mine = compiled(split, score="recency").generate(IDS, max_new_tokens=20, do_sample=True)
    torch.manual_seed(0)
    theirs = compiled(whole, score="recency").generate(IDS, max_new_tokens=20, do_sample=True)
    assert mine.tolist() == theirs.tolist()


def filters_of_the_whole(rank: int, folder: Path) -> None:
    """Found, made and given alike: those of the whole model, of which each process takes its heads."""
    split, whole = split_and_whole("llama", rank, folder)
    expected = qfpass.calibrate(whole, IDS)
    made = qfpass.calibrate(split, IDS)
    assert made.source["fingerprint"] == expected.source["fingerprint"]
    for mine, theirs in zip(made.filters, expected.filters, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    given, theirs = compiled(split, filters=expected), compiled(whole, filters=expected)
    assert written(given).tolist() == written(theirs).tolist()
    assert compiled(split).qfpass_decoder.fingerprint == compiled(whole).qfpass_decoder.fingerprint


def trained_filters(rank: int, folder: Path) -> None:
    """They read all heads, of which each process has its own: keys and values go to the others."""
    split, whole = split_and_whole("llama", rank, folder)
    generator = torch.Generator().manual_seed(1)
    tensors = tuple(torch.randn(2, 2 * 16 + 2, generator=generator) for _ in range(2))
    filters = qfpass.TrainedFilters(tensors, (0.5, 1.5))
    mine, theirs = compiled(split, filters=filters), compiled(whole, filters=filters)
    torch.testing.assert_close(mine(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    assert written(mine).tolist() == written(theirs).tolist()
    with pytest.raises(UnsupportedOpError, match="in one process"):
        qfpass.train(split, None, ["text"])


def few_bits(rank: int, folder: Path) -> None:
    split, whole = split_and_whole("llama", rank, folder)
    mine, theirs = (compiled(m, score="knorm", store_dtype=torch.int8) for m in (split, whole))
    torch.testing.assert_close(mine(IDS).logits, theirs(IDS).logits, atol=1e-3, rtol=1e-3)
    assert compiled(split, ratio=4, budget=None).config is not None


def sessions_of_any_number_of_processes(rank: int, folder: Path) -> None:
    """Saved by two and loaded by one and by two, and the other way round."""
    split, whole = split_and_whole("llama", rank, folder)
    models = [compiled(m, score="knorm") for m in (split, whole)]
    more = IDS[:, :3]
    for saver, path in zip(models, ("by_two", "by_one"), strict=True):
        session = saver.session()
        saver(IDS, past_key_values=session)
        if saver is models[0] or rank == 0:
            session.save(folder / path)
        dist.barrier()
        expected = saver(more, past_key_values=session).logits
        for loader in models:
            loaded = loader.session().load(folder / path)
            actual = loader(more, past_key_values=loaded).logits
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(SessionError if rank == 0 else RanksError):
        models[0].session().load(folder / ("by_two" if rank else "nowhere"))


def pools_forks_pins_and_crop(rank: int, folder: Path) -> None:
    """Called by all processes they give what they give in one; a file of what left a pool has all heads."""
    given = []
    models = [compiled(model, score="recency") for model in split_and_whole("llama", rank, folder)]
    for model in models:
        session, ids = model.session(take_back=2), IDS[:1]
        model(ids[:, :4], past_key_values=session)
        model(ids[:, 4:], past_key_values=session)
        session.crop(-2)
        pinned = model.session()
        model(ids[:, :10], past_key_values=pinned)
        pinned.pin(5, 8)
        model(ids[:, 10:], past_key_values=pinned)
        assert {5, 6, 7} <= set(pinned.positions(1)[0, 0].tolist())
        pool = model.pool(2)
        rows = [pool.join(pinned), pool.join(session)]
        after = model(ids[:, -2:], past_key_values=session.fork()).logits[0, -1:]
        given.append(torch.cat([after, pool.step({row: 7 for row in rows})]))
        if model is models[0]:
            pool.leave(rows[0]).save(folder / "left")
    torch.testing.assert_close(*given, atol=1e-4, rtol=1e-4)
    dist.barrier()
    steps = [m(IDS[:1, :1], past_key_values=m.session().load(folder / "left")).logits for m in models]
    torch.testing.assert_close(*steps, atol=1e-4, rtol=1e-4)


def what_is_refused(rank: int, folder: Path) -> None:
    split, _ = split_and_whole("llama", rank, folder)
    module = split.model.layers[1].mlp.down_proj
    own = vars(module).pop("forward")
    with pytest.raises(CaptureError, match=r"down_proj\.weight, a DTensor, but not by transformers"):
        compiled(split)
    vars(module)["forward"] = own
    ALL_PARALLEL_STYLES["sequence_parallel"].install_forward(split.model.norm, split._device_mesh)
    with pytest.raises(CaptureError, match=r"model\.norm in the parallel style 'sequence_parallel'"):
        compiled(split)
    odd = folder / "odd"
    if rank == 0:
        FAMILIES["llama"](heads=4, kv_heads=1).save_pretrained(odd)
    dist.barrier()
    with pytest.raises(CaptureError, match="1 key heads, which 2 processes can't share"):
        compiled(AutoModelForCausalLM.from_pretrained(odd, tp_plan="auto").eval())
    split, _ = split_and_whole("llama", rank, folder)
    with pytest.raises(ConfigError, match="all heads"):
        compiled(split, score=OfAllHeads())
    model = compiled(split, score="recency")
    for drafts in ({"use_mtp": True}, {"assistant_early_exit": 1}):
        with pytest.raises(InputError, match="over several processes"):
            model.generate(IDS[:1], max_new_tokens=3, do_sample=False, **drafts)


def the_page(rank: int, folder: Path) -> None:
    """What docs/several_devices.md shows."""
    if rank == 0:
        test_recipes.save_tiny(folder / "tiny", kv_heads=2, layers=2)
    dist.barrier()
    instead = {recipes.MODEL: str(folder / "tiny"), "ratio=8": 'budget=16, backend="eager"'}
    recipes.run_page(recipes.PAGES.parent / "several_devices.md", instead)


class OfAllHeads(qfpass.Score):
    reads_all_heads = True

    def __call__(self, keys: Any, values: Any, positions: Any, filters: Any) -> torch.Tensor:
        return keys.sum((1, 3))[:, None].expand(-1, keys.shape[1], -1)


def same_tokens_of_others(rank: int, folder: Path) -> None:
    same_tokens(rank, folder, ("qwen2", "qwen3", "gemma2", "mixtral", "qwen3_moe", *WHOLE_HEADS))


SCENARIOS = [same_tokens, nothing_compressed, filters_of_the_whole, what_is_refused, the_page]
LONGER = [
    sampled_tokens, trained_filters, few_bits, sessions_of_any_number_of_processes, pools_forks_pins_and_crop,
]  # fmt: skip


@needs_gloo
def test_two_processes_with_a_part_each(tmp_path: Path) -> None:
    in_two_processes(SCENARIOS, tmp_path)


@needs_gloo
@pytest.mark.slow
def test_two_processes_sample_save_and_pool(tmp_path: Path) -> None:
    in_two_processes(LONGER, tmp_path)


@needs_gloo
@pytest.mark.slow
def test_two_processes_of_other_families(tmp_path: Path) -> None:
    in_two_processes([same_tokens_of_others], tmp_path)


def by_inductor(rank: int, folder: Path) -> None:
    split, whole = split_and_whole("llama", rank, folder)
    filters = filters_by_chance(whole)
    mine = compiled(split, filters=filters, backend="inductor")
    assert written(mine).tolist() == written(compiled(whole, filters=filters)).tolist()


@needs_gloo
@pytest.mark.slow
def test_two_processes_with_a_part_each_by_inductor(tmp_path: Path) -> None:
    in_two_processes([by_inductor], tmp_path)
