"""A small decoder whose attention is a function of the test's choice."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

QUERY_HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, POSITIONS = 6, 2, 8, 53, 128


def causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Causal attention with grouped heads, all inside scaled_dot_product_attention."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def masked(mask_of: Callable[[torch.Tensor], torch.Tensor]) -> Attend:
    """Attention under a mask [B, 1, S, S] made from the positions [B, S]."""

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_of(positions), enable_gqa=True
        )

    return attend


def within(window: int) -> Attend:
    """Causal attention over the last `window` tokens."""

    def mask_of(positions: torch.Tensor) -> torch.Tensor:
        distance = positions[:, None, :, None] - positions[:, None, None, :]
        return (distance >= 0) & (distance < window)

    return masked(mask_of)


class Layer(nn.Module):
    """Attention and a feed-forward part, each on a residual stream of `width`."""

    def __init__(self, attend: Attend, width: int) -> None:
        super().__init__()
        self.attend = attend
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, QUERY_HEADS * HEAD_DIM)
        self.key = nn.Linear(width, KV_HEADS * HEAD_DIM)
        self.value = nn.Linear(width, KV_HEADS * HEAD_DIM)
        self.out = nn.Linear(QUERY_HEADS * HEAD_DIM, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """hidden [B, S, width], positions [B, S] -> [B, S, width]."""
        normed = self.norm(hidden)
        query, key, value = (
            part(normed).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        seen = self.attend(query, key, value, positions)
        hidden = hidden + self.out(seen.transpose(1, 2).flatten(2))
        return hidden + self.down(F.silu(self.up(hidden)))


class Decoder(nn.Module):
    """(input_ids [B, S], position_ids [B, S]) -> logits [B, S, VOCABULARY]."""

    def __init__(self, attends: Attend | Sequence[Attend] = causal, layers: int = 2) -> None:
        super().__init__()
        each = [attends] * layers if callable(attends) else list(attends)
        width = 24
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(POSITIONS, width)
        self.layers = nn.ModuleList(Layer(attend, width) for attend in each)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        hidden = self.tokens(input_ids) + self.places(position_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        return self.head(self.norm(hidden))


def decoder(attends: Attend | Sequence[Attend] = causal, layers: int = 2) -> Decoder:
    """A decoder with seeded weights, in eval mode."""
    torch.manual_seed(0)
    return Decoder(attends, layers).eval()


def text(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Random ids [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


def places(ids: torch.Tensor) -> torch.Tensor:
    """Positions [B, S] of ids that start a text."""
    return torch.arange(ids.shape[1]).expand(len(ids), -1)
