"""Without eviction a compiled decoder is the original: every family, any cut of a text, any size."""

import functools
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from often import often
from tiny import FAMILIES, FORMS, PlainDecoder, WindowDecoder
from torch import nn

import qfpass
from qfpass import Session
from qfpass.proof.verify import original_logits

VOCABULARY, CONTEXT, CHUNK = 61, 64, 9
EXAMPLES = int(os.environ.get("QFPASS_EXAMPLES", "2"))  # architectures of each family
BUILDERS: dict[str, Callable[..., nn.Module]] = FAMILIES | {
    "plain": lambda window=None, **sizes: PlainDecoder(**sizes),
    "window": lambda window=12, **sizes: WindowDecoder(window=window, **sizes),
}
every_family = pytest.mark.parametrize("family", BUILDERS)
# Grouped heads; sliding and full layers; learned positions; a bare tensor of logits; sliding alone.
each_kind = pytest.mark.parametrize(
    "family", often(["llama", "gemma3"], ["llama", "gemma3", "gpt2", "plain", "window"])
)
every_generator = pytest.mark.parametrize("family", FAMILIES)


def text(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Random ids [batch, length]."""
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits_of(output: Any) -> torch.Tensor:
    return getattr(output, "logits", output)


def read(model: nn.Module, session: Session, ids: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """Logits of ids [B, S] read into `session` in one call for each pair of neighbouring `ends`."""
    calls = [model(ids[:, a:b], past_key_values=session) for a, b in pairwise(ends)]
    return torch.cat([logits_of(call) for call in calls], dim=1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for float32's rounding of sums taken in another order, at logits of size 1 to 30."""
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[int]:
    """Ends of calls that cover a text of `length` tokens: 0, ..., length."""
    inner = draw(st.sets(st.integers(1, length - 1), max_size=8))
    return [0, *sorted(inner), length]


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, int]:
    """An architecture: grouped heads or not, one layer or two, any window."""
    kv_heads = draw(st.integers(1, 3))
    return {
        "layers": draw(st.integers(1, 2)),
        "heads": kv_heads * draw(st.integers(1, 3)),
        "kv_heads": kv_heads,
        "head_dim": draw(st.sampled_from((4, 8, 16))),
        "window": draw(st.integers(2, 20)),
        "vocab": VOCABULARY,
        "seed": draw(st.integers(0, 99)),
    }


@functools.cache
def both(family: str) -> tuple[Any, Any]:
    """The original and, without eviction, the compiled model of one architecture a family."""
    model = BUILDERS[family](window=7)
    return model, qfpass.compile(model, ratio=1, context_length=CONTEXT, backend="eager", chunk=CHUNK)


@every_family
@given(
    data=st.data(), sizes=sizes(), length=st.integers(2, 40), chunk=st.integers(2, 24), unfilled=st.booleans()
)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
def test_any_architecture_gives_the_originals_logits(
    family: str, data: st.DataObject, sizes: dict[str, int], length: int, chunk: int, unfilled: bool
) -> None:
    model = BUILDERS[family](**sizes)
    room = {"budget": 40, "score": "recency"} if unfilled else {"ratio": 1}
    compiled = qfpass.compile(model, context_length=CONTEXT, backend="eager", chunk=chunk, **room)
    ids = text(length, batch=data.draw(st.integers(1, 3)), seed=sizes["seed"])
    expected = original_logits(model, ids)
    assert expected.std() > 0.1  # logits that say something
    close(logits_of(compiled(ids)), expected)
    close(read(compiled, compiled.session(), ids, data.draw(cuts(length))), expected)
    close(read(compiled, compiled.session(), ids, range(length + 1)), expected)


@each_kind
@given(data=st.data(), sizes=sizes(), length=st.integers(16, 40), chunk=st.integers(2, 24))
@settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow])
def test_bfloat16_is_as_near_to_float32_as_the_original(
    family: str, data: st.DataObject, sizes: dict[str, int], length: int, chunk: int
) -> None:
    model = BUILDERS[family](dtype=torch.bfloat16, **sizes)
    compiled = qfpass.compile(model, ratio=1, context_length=CONTEXT, backend="eager", chunk=chunk)
    ids = text(length, seed=sizes["seed"])
    halved = original_logits(model, ids).float()
    exact = BUILDERS[family](dtype=torch.float32, **sizes)
    exact.load_state_dict({name: t.float() for name, t in model.state_dict().items()})
    expected = original_logits(exact, ids)
    # The original's own rounding, relative to the logits' size, is the yardstick. Another order of sums
    # is another draw from the same errors: twice them, and one bfloat16 step (2^-8) beside.
    allowed = 2 * float((halved - expected).norm() / expected.norm()) + 2**-8
    for ends in ([0, length], data.draw(cuts(length)), range(length + 1)):
        actual = read(compiled, compiled.session(), ids, ends)
        assert actual.dtype == torch.bfloat16
        assert float((actual.float() - expected).norm() / expected.norm()) < allowed


@every_generator
@given(length=st.integers(1, 20), new=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=3)
def test_generate_gives_the_originals_ids(family: str, length: int, new: int, seed: int) -> None:
    model, compiled = both(family)
    ids = text(length, batch=2, seed=seed)
    for how in ({"do_sample": False}, {"do_sample": True, "top_k": 20, "temperature": 0.8}):
        made = []
        for each in (model, compiled):
            torch.manual_seed(seed)
            mask = torch.ones_like(ids)
            made.append(each.generate(ids, attention_mask=mask, max_new_tokens=new, **how))
        assert made[0].shape[1] == length + new
        assert made[1].tolist() == made[0].tolist()


@each_kind
@given(data=st.data(), length=st.integers(2, 40))
@settings(max_examples=4)
def test_a_reset_session_reads_as_a_new_one(family: str, data: st.DataObject, length: int) -> None:
    _, compiled = both(family)
    ends = data.draw(cuts(length))
    session = compiled.session()
    first = read(compiled, session, text(length), ends)
    session.reset()
    read(compiled, session, text(30, seed=1), (0, 30))
    session.reset()
    assert session.tokens_seen == 0
    assert torch.equal(read(compiled, session, text(length), ends), first)


@each_kind
@given(data=st.data(), length=st.integers(2, 40))
@settings(max_examples=4)
def test_interleaved_sessions_do_not_meet(family: str, data: st.DataObject, length: int) -> None:
    _, compiled = both(family)
    texts = [text(length, batch=batch, seed=batch) for batch in (1, 2)]
    ends = [data.draw(cuts(length)) for _ in texts]
    alone = [read(compiled, compiled.session(), *each) for each in zip(texts, ends, strict=True)]
    sessions = [compiled.session() for _ in texts]
    parts: list[list[torch.Tensor]] = [[], []]
    turns = [(cut, which) for which in (0, 1) for cut in pairwise(ends[which])]
    for (a, b), which in sorted(turns):
        parts[which].append(read(compiled, sessions[which], texts[which], (a, b)))
    for which in (0, 1):
        assert torch.equal(torch.cat(parts[which], dim=1), alone[which])


@each_kind
@given(data=st.data(), length=st.integers(2, 40))
@settings(max_examples=4)
def test_logits_to_keep_keeps_those(family: str, data: st.DataObject, length: int) -> None:
    _, compiled = both(family)
    ids = text(length, batch=2)
    whole = logits_of(compiled(ids))
    last = data.draw(st.integers(1, length + 3))
    chosen = torch.tensor(sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1))))
    close(logits_of(compiled(ids, logits_to_keep=1)), whole[:, -1:])
    close(logits_of(compiled(ids, logits_to_keep=last)), whole[:, -last:])
    close(logits_of(compiled(ids, logits_to_keep=chosen)), whole[:, chosen])


@pytest.mark.parametrize("form", FORMS)
def test_rarer_forms_of_attention_are_exact(form: str) -> None:
    model = FORMS[form](layers=4)
    compiled = qfpass.compile(model, context_length=CONTEXT, chunk=CHUNK, backend="eager")
    ids = text(CONTEXT, batch=2)
    session = compiled.session()
    close(read(compiled, session, ids, [0, 9, 10, 11, 30, 50, 51, CONTEXT]), original_logits(model, ids))
