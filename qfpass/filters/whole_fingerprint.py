"""The fingerprint of a model that is split over processes: the same as that of the whole model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed

from ..attention.find import Attention
from ..attention.spread_heads import heads_of_whole, splits_heads
from ..capture.ranks import Ranks
from ..graph.captured import Captured
from ..graph.shards import Shards
from ..graph.stages import Stages
from .fingerprints import bits_of, digest_of, places_of, samples_of
from .whole_layers import with_all_layers


def as_part_of_whole(
    captured: Captured, attentions: Sequence[Attention], ranks: Ranks
) -> tuple[Captured, list[Attention]]:
    """A captured graph that knows which layers or heads of the model it has, and the whole's fingerprint.

    Its attentions come with it, counted as the whole model's.

    Raises:
        UnsupportedOpError: some operands of attentions are split by heads, and others aren't.
        RanksError: it is so in another process, or processes have layers that don't fit together.
    """
    if captured.part is None:
        return captured, list(attentions)
    if isinstance(captured.part, Stages):
        captured, attentions = with_all_layers(captured, attentions, ranks)
        known = _fingerprint_of_stages(captured, attentions, ranks)
    else:
        assert isinstance(captured.part, Shards)
        splits = ranks.together(lambda: splits_heads(captured, attentions))
        captured = replace(captured, part=replace(captured.part, splits_heads=splits))
        known = whole_fingerprint(captured, attentions)
    return replace(captured, whole_fingerprint=known), list(attentions)


def _fingerprint_of_stages(captured: Captured, attentions: Sequence[Attention], ranks: Ranks) -> str:
    """The fingerprint of the whole model, of which each process has some layers' weights."""
    own = samples_of((*captured.module.parameters(), *captured.module.buffers()))
    return digest_of(
        heads_of_whole(captured, attentions), [each for stage in ranks.each(own) for each in stage]
    )


def whole_fingerprint(captured: Captured, attentions: Sequence[Attention]) -> str:
    """The fingerprint that one process with the whole model computes, where heads are split.

    All processes must call it: each gives the sampled numbers that lie in its parts. See `fingerprint`.
    """
    shards, module = captured.part, captured.module
    assert isinstance(shards, Shards)
    tensors = [shards.whole_of(tensor) for tensor in (*module.parameters(), *module.buffers())]
    samples = [_own_bits(tensor, shards.rank, shards.size) for tensor in tensors]
    known = torch.cat(samples).to(captured.device, torch.int32)  # what isn't here is 0, so a sum joins all
    torch.distributed.all_reduce(known, group=shards.group)
    bits = known.split([len(sample) for sample in samples])
    each = [(tuple(t.shape), b.tolist()) for t, b in zip(tensors, bits, strict=True)]
    return digest_of(heads_of_whole(captured, attentions), each)


def _own_bits(tensor: Any, rank: int, size: int) -> torch.Tensor:
    """The sampled bits of a tensor that lie in this process, 0 for others; of a whole one, rank 0's."""
    from torch.distributed.tensor import Shard

    index = places_of(tensor.shape)
    placement = tensor.placements[0] if hasattr(tensor, "placements") else None
    if placement is None or placement.is_replicate():
        local = tensor if placement is None else tensor.to_local()
        return bits_of(local, index) * (rank == 0)
    if type(placement) is not Shard:  # of a weight in which several are packed
        return bits_of(tensor.full_tensor(), index) * (rank == 0)
    dim, local = placement.dim % tensor.ndim, tensor.to_local()
    first = rank * -(-tensor.shape[dim] // size)
    here = (index[dim] >= first) & (index[dim] < first + local.shape[dim])
    index = tuple(i.clone() for i in index)
    index[dim].sub_(first).mul_(here)
    return bits_of(local, index) * here
