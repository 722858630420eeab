"""A gate on attention's output by its log-sum-exp is a learned sink, if it is certain to be one."""

from collections.abc import Callable

import pytest
import torch
from decoders import QUERY_HEADS, decoder
from keep_all import check_rewritten, found

from qfpass.errors import UnsupportedOpError

T = torch.Tensor
SINK = torch.linspace(-1.0, 1.0, QUERY_HEADS)


def gated(gate: Callable[[T], T], output: Callable[[T, T], T]) -> Callable[[T, T, T, T], T]:
    """Causal attention with `gate(logsumexp [B, H, S])` put on its output by `output`."""

    def attend(query: T, key: T, value: T, positions: T) -> T:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        later = positions[:, None, None, :] > positions[:, None, :, None]
        logits = (query @ key.transpose(-1, -2) * 0.3).masked_fill(later, float("-inf"))
        return output(logits.softmax(-1) @ value, gate(logits.logsumexp(-1)))

    return attend


GATES: dict[str, Callable[[T], T]] = {
    "before the dimension": lambda lse: torch.sigmoid(lse - SINK[:, None])[..., None],
    "behind the dimension": lambda lse: torch.sigmoid(lse[..., None] - SINK[:, None, None]),
    "cast": lambda lse: torch.sigmoid((lse.double() - SINK[:, None]).unsqueeze(-1)).float(),
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_a_gate_is_one_more_logit(gate: Callable[[T], T]) -> None:
    model = decoder(gated(gate, lambda out, g: out * g), layers=1)
    captured, (attention,) = found(model)
    assert attention.sink is not None and attention.form.scale == pytest.approx(0.3)
    check_rewritten(model, captured, [attention])


OTHERS: dict[str, tuple[Callable[[T], T], Callable[[T, T], T]]] = {
    "added": (GATES["before the dimension"], lambda out, g: out + g),
    "no sink": (lambda lse: torch.sigmoid(lse)[..., None], lambda out, g: out * g),
    "a sink a token": (lambda lse: torch.sigmoid(lse - lse.mean(1, True))[..., None], lambda out, g: out * g),
    "tanh": (lambda lse: torch.tanh(lse - SINK[:, None])[..., None], lambda out, g: out * g),
    "turned round": (lambda lse: torch.sigmoid(SINK[:, None] - lse)[..., None], lambda out, g: out * g),
    "another row": (
        lambda lse: torch.sigmoid(lse - SINK[:, None]).flip(2)[..., None],
        lambda out, g: out * g,
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_sink_is_refused_by_name(case: str) -> None:
    with pytest.raises(UnsupportedOpError, match="logsumexp"):
        found(decoder(gated(*OTHERS[case]), layers=1))
