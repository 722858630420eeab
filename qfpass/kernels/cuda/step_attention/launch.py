"""Launch the kernels of `loops` over a store: how its slots are parted, and the sizes of their tiles."""

from functools import cache

import torch
import triton
import triton.language as tl

from .loops import attend_part, join_parts

FEWEST_ROWS, MOST_ROWS = 16, 32  # of a product on tensor cores
PROGRAMS = 2  # a multiprocessor
JOINED = 16  # parts that are joined at a time
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    lengths: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The out and lse of `attend_slots`, by the Triton kernels."""
    rows, heads, _, dim = query.shape
    _, kv_heads, slots, _ = key.shape
    is_packed = value.dtype == torch.uint8
    value_dim = value.shape[3] * (2 if is_packed else 1)
    compiled_for = {
        **sizes(heads // kv_heads, dim, value_dim), **dtypes(query, key), **tiles(dim, value_dim, query.dtype)
    }  # fmt: skip
    part_slots = slots_a_part(slots, compiled_for["TILE"], rows * kv_heads, multiprocessors(query.device))
    parts = max(1, -(-slots // part_slots))
    if bias is not None:
        bias = bias.float().expand(rows, heads, 1, slots)
        bias = bias if bias.stride(3) == 1 else bias.contiguous()
    out, lse = query.new_empty(rows, heads, value_dim), query.new_empty(rows, heads, dtype=torch.float32)
    part_out, part_lse = out, lse
    if parts > 1:
        part_out, part_lse = (
            query.new_empty(*shape, dtype=torch.float32)
            for shape in ((rows, heads, parts, value_dim), (rows, heads, parts))
        )
    attend_part[(rows * kv_heads, parts, -(-heads // kv_heads // compiled_for["ROWS"]))](
        query.contiguous(), key, value, key_scale, value_scale, bias, lengths, part_out, part_lse,
        scale, softcap, slots, part_slots,
        key.stride(), value.stride(), _strides(key_scale), _strides(value_scale),
        *((0, 0) if bias is None else bias.stride()[:2]),
        KV_HEADS=kv_heads, IS_PACKED=is_packed, **compiled_for,
    )  # fmt: skip
    if parts > 1:
        join_parts[(rows * heads,)](
            part_out, part_lse, out, lse, parts,
            VALUE_DIM=value_dim, VALUE_WIDE=compiled_for["VALUE_WIDE"], TILE=JOINED,
        )  # fmt: skip
    return out.unsqueeze(2), lse.unsqueeze(2)


def sizes(group: int, dim: int, value_dim: int) -> dict[str, int]:
    """The sizes that `attend_part` is compiled for."""
    rows, wide, value_wide = (
        max(FEWEST_ROWS, triton.next_power_of_2(size)) for size in (group, dim, value_dim)
    )
    return {
        "GROUP": group, "DIM": dim, "VALUE_DIM": value_dim,
        "ROWS": min(rows, MOST_ROWS), "WIDE": wide, "VALUE_WIDE": value_wide,
    }  # fmt: skip


def dtypes(query: torch.Tensor, key: torch.Tensor) -> dict[str, tl.dtype]:
    """The dtypes in which `attend_part` multiplies."""
    products = weights = query.dtype
    if key.dtype == torch.int8 and query.dtype == torch.float16:
        weights = torch.bfloat16  # in float16 a small weight times a value's scale would be 0
    if query.device.type == "cpu":  # Triton's interpreter can't multiply in bfloat16
        products, weights = (
            torch.float32 if dtype == torch.bfloat16 else dtype for dtype in (products, weights)
        )
    return {"PRODUCTS": TYPES[products], "WEIGHTS": TYPES[weights]}


def tiles(dim: int, value_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """The slots of a tile, and the warps and stages of copies that `attend_part` is compiled for.

    The tiles on their way take at most 72 KiB, so that two programs fit in a multiprocessor. Not measured.
    """
    nbytes = (dim + value_dim) * dtype.itemsize
    tile = 64 if nbytes <= 512 else 32 if nbytes <= 1024 else 16
    is_wide = dtype == torch.float32  # multiplied without tensor cores, in many registers
    return {"TILE": tile, "num_warps": 8 if is_wide else 4, "num_stages": 2 if is_wide else 3}


def slots_a_part(slots: int, tile: int, heads: int, processors: int) -> int:
    """Slots of a part, whole tiles, so that `heads` give every multiprocessor its programs if slots allow."""
    wanted = max(1, -(-PROGRAMS * processors // heads))
    return max(1, -(-slots // (wanted * tile))) * tile


@cache
def multiprocessors(device: torch.device) -> int:
    """The multiprocessors of a GPU; a few on a processor, where Triton's interpreter runs the kernels."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def _strides(scales: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if scales is None else scales.stride()
