"""Attention programs drawn at random: each is found with the right parameters or refused, never misread."""

import math
from dataclasses import dataclass

import pytest
import torch
from decoders import HEAD_DIM, KV_HEADS, QUERY_HEADS, decoder
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from keep_all import check_rewritten, found

from qfpass.attention.span import Span
from qfpass.errors import UnsupportedOpError

T = torch.Tensor
GROUP = QUERY_HEADS // KV_HEADS
LOWEST = torch.finfo(torch.float32).min
SLOPES = torch.tensor([2.0 ** -(i + 1) for i in range(QUERY_HEADS)])
SINK = torch.linspace(-1, 2, QUERY_HEADS)


@dataclass(frozen=True)
class Program:
    """One way to write attention down; called as (query, key, value, positions) -> out [B, Hq, S, Dv]."""

    product: str
    repeat: str
    scale: str
    mask: str
    span: Span
    softcap: float | None
    slopes: str | None
    sink: str | None
    upcast: bool

    def __call__(self, query: T, key: T, value: T, positions: T) -> T:
        factor = 0.3
        if self.scale == "query":
            query = query * factor
        logits = self._product(query, self._wide(key), factor)
        if self.scale == "after":
            logits = logits * factor
        elif self.scale == "divided":
            logits = logits / math.sqrt(10)
        if self.upcast:
            logits = logits.double()
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        if self.mask == "multiplied":
            logits = logits * _like(logits, self._seen(positions).float())
        logits = self._masked(self._biased(logits, positions), positions)
        out = self._output(self._weights(logits).to(value.dtype), self._wide(value))
        return self._gated(out, logits).to(value.dtype) if self.sink == "gate" else out

    @property
    def true_scale(self) -> float:
        """What multiplies <query, key>, the query as it goes into the product."""
        return {"query": 1.0, "after": 0.3, "inside": 0.3, "divided": 10**-0.5}[self.scale]

    def _wide(self, kv: T) -> T:
        """[B, Hq, S, D], or [B, Hkv, S, D] for a grouped product."""
        if self.product.startswith("grouped"):
            return kv[:, :1] if self.repeat == "one" else kv
        if self.repeat == "interleave":
            return kv.repeat_interleave(GROUP, dim=1)
        if self.repeat == "expand":
            batch, heads, length, dim = kv.shape
            return kv[:, :, None].expand(batch, heads, GROUP, length, dim).reshape(batch, -1, length, dim)
        return kv[:, :1].expand(-1, QUERY_HEADS, -1, -1)  # "one": multi-query, of the first head

    def _product(self, query: T, key: T, factor: float) -> T:
        batch, heads, length, _ = query.shape
        if self.product.startswith("grouped"):
            query = query.unflatten(1, (key.shape[1], -1))
            if self.product == "grouped matmul":
                logits = query @ key[:, :, None].transpose(-1, -2)
            elif self.product == "grouped einsum":
                logits = torch.einsum("bhgqd,bhkd->bhgqk", query, key)
            else:
                query, key = query.permute(0, 3, 1, 2, 4).contiguous(), key.transpose(1, 2).contiguous()
                logits = torch.einsum("bqhgd,bkhd->bhgqk", query, key)
            return logits * (factor if self.scale == "inside" else 1)
        if self.product == "matmul":
            return query @ key.transpose(2, 3) * (factor if self.scale == "inside" else 1)
        if self.product == "einsum":
            return torch.einsum("bhqd,bhkd->bhqk", query, key) * (factor if self.scale == "inside" else 1)
        if self.product == "einsum heads last":
            query, key = query.transpose(1, 2).contiguous(), key.transpose(1, 2).contiguous()
            logits = torch.einsum("bqhd,bkhd->bhqk", query, key)
            return logits * (factor if self.scale == "inside" else 1)
        query, key = query.reshape(batch * heads, length, -1), key.reshape(batch * heads, length, -1)
        if self.product == "bmm":
            logits = torch.bmm(query, key.transpose(1, 2)) * (factor if self.scale == "inside" else 1)
        else:
            alpha = factor if self.scale == "inside" else 1.0
            empty = query.new_zeros(batch * heads, 1, length)
            logits = torch.baddbmm(empty, query, key.transpose(1, 2), beta=0.0, alpha=alpha)
        return logits.view(batch, heads, length, length)

    def _biased(self, logits: T, positions: T) -> T:
        slopes = SLOPES[:, None, None]
        if self.slopes == "key":  # a row's own constant doesn't matter to a softmax
            return logits + _like(logits, slopes * positions[:, None, None, :])
        if self.slopes == "distance":
            distance = positions[:, None, :, None] - positions[:, None, None, :]
            return logits - _like(logits, slopes * distance)
        return logits

    def _seen(self, positions: T) -> T:
        """[B, 1, S, S]: which keys a query sees."""
        here, there = positions[:, None, :, None], positions[:, None, None, :]
        seen = here >= there
        if self.span.window is not None:
            seen = seen & (here - there < self.span.window)
        if self.span.chunk is not None:
            seen = seen & (here // self.span.chunk == there // self.span.chunk)
        return seen

    def _masked(self, logits: T, positions: T) -> T:
        seen = _like(logits, self._seen(positions))
        if self.mask == "multiplied":
            return logits + -1e4 * (1 - seen.float())
        if self.mask == "added":
            return logits + torch.where(seen, 0.0, LOWEST)
        if self.mask == "clamped":
            hidden = torch.where(seen, 0.0, float("-inf"))
            lowest = torch.full((), torch.finfo(logits.dtype).min, dtype=logits.dtype)
            return torch.max(logits + hidden, lowest)
        if self.mask == "chosen":
            return torch.where(seen, logits, LOWEST)
        return logits.masked_fill(~seen, float("-inf"))

    def _weights(self, logits: T) -> T:
        if self.sink != "column":
            return logits.softmax(-1)
        sink = _like(logits, SINK.to(logits.dtype).reshape(1, -1, 1, 1)).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, sink], dim=-1)
        return (logits - logits.max(dim=-1, keepdim=True).values).softmax(-1)[..., :-1]

    def _gated(self, out: T, logits: T) -> T:
        """The same by what the keys have of the weight beside the sink."""
        sink = _like(logits, SINK.reshape(1, -1, 1, 1)).squeeze(-1)
        gate = (logits.logsumexp(-1) - sink).float().sigmoid().unsqueeze(-1)
        return out * (gate.flatten(1, 2) if gate.dim() == 5 else gate)

    def _output(self, weights: T, value: T) -> T:
        if self.product == "grouped matmul":
            return (weights @ value[:, :, None]).flatten(1, 2)
        if self.product == "grouped einsum":
            return torch.einsum("bhgqk,bhkd->bhgqd", weights, value).flatten(1, 2)
        if self.product.startswith("grouped"):
            value = value.transpose(1, 2).contiguous()
            return torch.einsum("bhgqk,bkhd->bqhgd", weights, value).flatten(2, 3).transpose(1, 2)
        batch, heads, length, dim = value.shape
        if self.product == "einsum":
            return torch.einsum("bhqk,bhkd->bhqd", weights, value)
        if self.product == "einsum heads last":
            value = value.transpose(1, 2).contiguous()
            return torch.einsum("bhqk,bkhd->bqhd", weights, value).transpose(1, 2)
        if self.product in ("bmm", "baddbmm"):
            out = torch.bmm(weights.view(-1, length, length), value.reshape(-1, length, dim))
            return out.view(batch, heads, length, dim)
        return weights @ value


def _like(logits: T, x: T) -> T:
    """[B, 1 or Hq, ., .] in the form of the logits, whose heads may be split in groups."""
    if logits.dim() == 4:
        return x
    return x[:, :, None] if x.shape[1] == 1 else x.unflatten(1, logits.shape[1:3])


GROUPED = ["grouped matmul", "grouped einsum", "grouped einsum heads last"]

programs = st.builds(
    Program,
    product=st.sampled_from(["matmul", "bmm", "baddbmm", "einsum", "einsum heads last", *GROUPED]),
    repeat=st.sampled_from(["interleave", "expand", "one"]),
    scale=st.sampled_from(["query", "after", "inside", "divided"]),
    mask=st.sampled_from(["added", "chosen", "filled", "clamped", "multiplied"]),
    span=st.sampled_from([Span(), Span(), Span(window=5), Span(chunk=4)]),
    softcap=st.sampled_from([None, None, 0.5]),
    slopes=st.sampled_from([None, None, "key", "distance"]),
    sink=st.sampled_from([None, None, "column", "gate"]),
    upcast=st.booleans(),
)


@given(program=programs)
@settings(max_examples=25, phases=[Phase.generate])  # shrinking takes minutes
def test_no_program_is_misread(program: Program) -> None:
    # All refused: see below.
    assume(not (program.slopes and program.span.reach) and not (program.slopes == "key" and program.sink))
    assume(not (program.product.endswith("heads last") and program.sink == "gate"))
    model = decoder(program, layers=1)
    captured, (attention,) = found(model)
    assert attention.span == program.span
    assert attention.form.scale == pytest.approx(program.true_scale)
    assert attention.form.softcap == (None if program.softcap is None else pytest.approx(program.softcap))
    assert (attention.sink is not None) == (program.sink is not None)
    assert attention.head_dim == attention.value_dim == HEAD_DIM
    assert attention.kv_heads == (1 if program.repeat == "one" else KV_HEADS)
    read = attention.form.bias and attention.form.bias.slopes
    assert read == (None if program.slopes is None else pytest.approx(SLOPES.tolist(), rel=1e-4))
    check_rewritten(model, captured, [attention])


@pytest.mark.parametrize(
    ("product", "span", "slopes", "sink", "reason"),
    [
        ("matmul", Span(window=5), "distance", None, "distance within a window"),
        # Beside a sink, a row's constant matters.
        ("matmul", Span(), "key", "column", "isn't linear in the distance"),
        ("grouped matmul", Span(), "key", "gate", "isn't linear in the distance"),
        # Which head a number of the gate is for isn't followed through a permutation.
        ("einsum heads last", Span(), None, "gate", "read by aten.logsumexp"),
    ],
)
def test_is_refused(product: str, span: Span, slopes: str | None, sink: str | None, reason: str) -> None:
    program = Program(product, "expand", "after", "filled", span, None, slopes, sink, upcast=False)
    with pytest.raises(UnsupportedOpError, match=rf"layers\.0.*{reason}"):
        found(decoder(program, layers=1))
