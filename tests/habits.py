"""Decoders with habits: they change values by lengths, positions, ids, buffers, flags and hooks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from decoders import Decoder, causal, masked
from torch import nn

CONTEXT = 40


class Call(NamedTuple):
    """What a habit may look at: the model, ids and positions [B, S]."""

    model: "Invented"
    ids: torch.Tensor
    positions: torch.Tensor

    @property
    def length(self) -> int:
        return self.ids.shape[1]


Habit = Callable[[torch.Tensor, Call, int], torch.Tensor]
"""(hidden [B, S, E], call, border) -> hidden."""


class Invented(Decoder):
    """A decoder with habits, at its first hidden values, its last, or its logits, and in its attention."""

    def __init__(self, habits: Sequence[tuple[str, Habit, int]], attention: str, border: int) -> None:
        attend = ATTENTIONS[attention]
        super().__init__(lambda *qkv_positions: attend(border, *qkv_positions))
        self.habits = habits
        self.flag, self.longest = False, 0
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("largest", torch.zeros((), dtype=torch.long))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        call = Call(self, input_ids, position_ids)
        hidden = self._changed("first", self.tokens(input_ids) + self.places(position_ids), call)
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        logits = self.head(self.norm(self._changed("last", hidden, call)))
        return self._changed("logits", logits, call)

    def _changed(self, where: str, values: torch.Tensor, call: Call) -> torch.Tensor:
        for place, habit, border in self.habits:
            if place == where:
                values = habit(values, call, border)
        return values


def by_length(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * (1 + call.length / border)


def by_log_of_length(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * torch.tensor(float(call.length)).clamp(min=border).log()


def branch(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * 2 if call.length > border else x


def branch_on_a_rest(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * 2 if call.length % border == 1 else x


def in_blocks(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * (1 + (call.length + border - 1) // border)


def by_largest(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return torch.where(call.positions.max() >= border, 2 * x, x)


def by_largest_of_a_row(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * (call.positions.amax(1, keepdim=True) >= border)[..., None].float().add(1)


def by_mean_position(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * (1 + call.positions.float().mean() / border)


def by_own_position(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return torch.where(call.positions[..., None] >= border, 2 * x, x)


def by_clamped_position(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * (1 + call.positions.clamp(max=border)[..., None] / border)


def from_the_end(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * (1 + (call.length - 1 - call.positions)[..., None].clamp(max=border) / border)


def from_the_start_of_the_call(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * (1 + torch.arange(call.length)[:, None] / border)


def from_the_first_position(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * (1 + (call.positions - call.positions[:, :1])[..., None] / border)


def by_ids(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return torch.where((call.ids % border == 0)[..., None], 2 * x, x)


def by_earlier_ids(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * (1 + (call.ids % border == 0).cumsum(1)[..., None] / border)


def by_the_last_id(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x * (1 + call.ids[:, -1:, None] / border)


def once_an_id_was_read(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return torch.where(((call.ids == border).cumsum(1) > 0)[..., None], 2 * x, x)


def after_an_id(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return torch.where((F.pad(call.ids, (1, 0))[:, :-1] == border)[..., None], 2 * x, x)


def by_the_largest_id(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return torch.where((call.ids.amax(1, keepdim=True) == border)[..., None], 2 * x, x)


def by_the_mean(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x + x.mean(1, keepdim=True)


def by_the_other_rows(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x + x.mean(0, keepdim=True)


def counting(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    call.model.calls.add_(1)
    return x * (1 + call.model.calls / border)


def counting_past(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    call.model.calls.add_(1)
    return torch.where(call.model.calls > border, 2 * x, x)


def remembering(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    call.model.largest.copy_(torch.maximum(call.model.largest, call.positions.max()))
    return torch.where(call.model.largest >= border, 2 * x, x)


def remembering_in_python(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    call.model.longest = max(call.model.longest, call.length)
    return x * 2 if call.model.longest > border else x


def turning_a_flag(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    was, call.model.flag = call.model.flag, call.length > border
    return x * 2 if was else x


def noise(x: torch.Tensor, call: Call, border: int) -> torch.Tensor:
    return x + torch.randn_like(x) / border


HABITS: Sequence[Habit] = (
    by_length, by_log_of_length, branch, branch_on_a_rest, in_blocks, by_largest, by_largest_of_a_row,
    by_mean_position, by_own_position, by_clamped_position, from_the_end, from_the_start_of_the_call,
    from_the_first_position, by_ids, by_earlier_ids, once_an_id_was_read, after_an_id,
    by_the_largest_id, by_the_last_id, by_the_mean, by_the_other_rows, counting,
    counting_past, remembering, remembering_in_python, turning_a_flag, noise,
)  # fmt: skip

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def log_n(border: int, query: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Queries scaled by the logarithm of their position past the border."""
    positions = rest[-1]
    scale = (positions + 1).float().clamp(min=border).log()[:, None, :, None]
    return causal(query * scale, *rest)


def log_n_of_the_call(border: int, query: torch.Tensor, *rest: Any) -> torch.Tensor:
    scale = torch.where(rest[-1].max() >= border, 1.5, 1.0)
    return causal(query * scale, *rest)


def windowed(border: int, *qkv_positions: Any) -> torch.Tensor:
    return masked(lambda p: _near(p, border))(*qkv_positions)


def windowed_past(border: int, *qkv_positions: Any) -> torch.Tensor:
    """Another window once the text is longer than the border."""
    return masked(lambda p: _near(p, torch.where(p.max() >= border, 3, 8)))(*qkv_positions)


def windowed_late(border: int, *qkv_positions: Any) -> torch.Tensor:
    """A window for queries behind the border alone."""
    return masked(lambda p: _near(p, CONTEXT) & (_near(p, 4) | (p[:, None, :, None] < border)))(
        *qkv_positions
    )


def _near(positions: torch.Tensor, window: Any) -> torch.Tensor:
    distance = positions[:, None, :, None] - positions[:, None, None, :]
    return (distance >= 0) & (distance < window)


ATTENTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "causal": lambda border, *qkv_positions: causal(*qkv_positions),
    "log_n": log_n, "log_n_of_the_call": log_n_of_the_call, "windowed": windowed,
    "windowed_past": windowed_past, "windowed_late": windowed_late,
}  # fmt: skip


def length_hook(border: int) -> Callable[..., Any]:
    def scale(module: nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        hidden, *rest = args
        return (hidden * (1.5 if hidden.shape[1] > border else 1.0), *rest)

    return scale


def position_hook(border: int) -> Callable[..., Any]:
    def scale(module: nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        hidden, positions = args
        return hidden * (1 + positions[..., None] / border), positions

    return scale


HOOKS = {"none": None, "length": length_hook, "position": position_hook}
