# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The Triton kernels of `attend_slots`: a part of a head's slots, and the parts of a head joined.

A program reads its keys and values once for up to `ROWS` queries of their group, in tiles of `TILE` slots,
and multiplies on tensor cores. Beside the sums it keeps the softmax's running peak and total. A group is
padded to the 16 rows that tensor cores take, which costs nothing: a step waits for memory.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["slots", "part_slots", "bias_row", "bias_head"])
def attend_part(
    query,  # [B, Hkv, GROUP, DIM], dense
    key,
    value,
    key_scale,
    value_scale,
    bias,
    lengths,
    out,  # [B, Hkv, GROUP, parts, VALUE_DIM], dense
    lse,  # [B, Hkv, GROUP, parts], dense
    scale,
    softcap,
    slots,
    part_slots,
    key_strides,
    value_strides,
    key_scale_strides,
    value_scale_strides,
    bias_row,
    bias_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    VALUE_WIDE: tl.constexpr,
    TILE: tl.constexpr,
    IS_PACKED: tl.constexpr,
    PRODUCTS: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """Attention over slots part * part_slots and the following, of one kv head of one row.

    WIDE and VALUE_WIDE are DIM and VALUE_DIM padded to powers of two. PRODUCTS is the dtype in which queries
    are multiplied with keys, WEIGHTS that of weights with values. If IS_PACKED, values are in four bits, as
    `kernels.int4` packs them. A part without a slot gives 0, and -inf for its log-sum-exp.
    """
    row = (tl.program_id(0) // KV_HEADS).to(tl.int64)
    head = (tl.program_id(0) % KV_HEADS).to(tl.int64)
    part, parts = tl.program_id(1), tl.num_programs(1)
    first = part * part_slots
    last = tl.minimum(first + part_slots, slots)
    if lengths is not None:
        last = tl.minimum(last, tl.load(lengths + row).to(tl.int32))

    of_group = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    of_key = tl.arange(0, WIDE)
    of_tile = tl.arange(0, TILE)
    is_query = of_group < GROUP
    query_head = (row * KV_HEADS + head) * GROUP + of_group
    queries = tl.load(
        query + query_head[:, None] * DIM + of_key[None, :],
        mask=is_query[:, None] & (of_key < DIM)[None, :],
        other=0.0,
    ).to(PRODUCTS)
    key += row * key_strides[0] + head * key_strides[1]
    value += row * value_strides[0] + head * value_strides[1]
    if key_scale is not None:
        key_scale += row * key_scale_strides[0] + head * key_scale_strides[1]
        value_scale += row * value_scale_strides[0] + head * value_scale_strides[1]

    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if IS_PACKED:
        sums = tl.zeros([ROWS, VALUE_WIDE // 2], tl.float32)
        upper_sums = tl.zeros([ROWS, VALUE_WIDE // 2], tl.float32)
    else:
        sums = tl.zeros([ROWS, VALUE_WIDE], tl.float32)

    for start in range(first, last, TILE):
        slot = start + of_tile
        is_seen = slot < last
        slot = slot.to(tl.int64)
        keys = tl.load(
            key + slot[None, :] * key_strides[2] + of_key[:, None] * key_strides[3],
            mask=is_seen[None, :] & (of_key < DIM)[:, None],
            other=0,
        )
        logits = tl.dot(queries, keys.to(PRODUCTS), input_precision="ieee") * scale
        if key_scale is not None:
            logits *= tl.load(key_scale + slot * key_scale_strides[2], mask=is_seen, other=0.0)[None, :]
        if softcap is not None:
            logits = softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)  # tanh
        if bias is not None:
            biases = bias + row * bias_row + (head * GROUP + of_group)[:, None] * bias_head + slot[None, :]
            logits += tl.load(biases, mask=is_query[:, None] & is_seen[None, :], other=0.0)
        logits = tl.where(is_seen[None, :], logits, float("-inf"))

        higher = tl.maximum(peak, tl.max(logits, 1))
        # A bias may hide all slots so far, and -inf minus -inf would be NaN.
        level = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(logits - level[:, None])
        shrink = tl.exp(peak - level)
        total = total * shrink + tl.sum(weights, 1)
        peak = higher

        if IS_PACKED:
            lower, upper = _unpacked(
                value, value_scale, slot, is_seen, value_strides, value_scale_strides,
                VALUE_DIM, VALUE_WIDE, TILE, WEIGHTS,
            )  # fmt: skip
            sums = tl.dot(weights.to(WEIGHTS), lower, sums * shrink[:, None], input_precision="ieee")
            upper_sums = tl.dot(
                weights.to(WEIGHTS), upper, upper_sums * shrink[:, None], input_precision="ieee"
            )
        else:
            of_value = tl.arange(0, VALUE_WIDE)
            values = tl.load(
                value + slot[:, None] * value_strides[2] + of_value[None, :] * value_strides[3],
                mask=is_seen[:, None] & (of_value < VALUE_DIM)[None, :],
                other=0,
            )
            if value_scale is not None:
                value_scales = value_scale + slot * value_scale_strides[2]
                weights *= tl.load(value_scales, mask=is_seen, other=0.0)[None, :]
            sums = tl.dot(
                weights.to(WEIGHTS), values.to(WEIGHTS), sums * shrink[:, None], input_precision="ieee"
            )

    total = tl.where(total == 0, 1.0, total)  # no slot seen: sums of 0 and a peak of -inf
    place = query_head * parts + part
    tl.store(lse + place, peak + tl.log(total), mask=is_query)
    share = 1 / total[:, None]
    out += place[:, None] * VALUE_DIM
    if IS_PACKED:
        byte = tl.arange(0, VALUE_WIDE // 2)
        number = (byte // 16 * 32 + byte % 16)[None, :]
        is_number = is_query[:, None] & (number < VALUE_DIM)
        tl.store(out + number, (sums * share).to(out.dtype.element_ty), mask=is_number)
        tl.store(out + number + 16, (upper_sums * share).to(out.dtype.element_ty), mask=is_number)
    else:
        number = tl.arange(0, VALUE_WIDE)[None, :]
        is_number = is_query[:, None] & (number < VALUE_DIM)
        tl.store(out + number, (sums * share).to(out.dtype.element_ty), mask=is_number)


@triton.jit
def _unpacked(
    value,
    value_scale,
    slot,
    is_seen,
    value_strides,
    value_scale_strides,
    VALUE_DIM: tl.constexpr,
    VALUE_WIDE: tl.constexpr,
    TILE: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """The lower and upper numbers [TILE, VALUE_WIDE / 2] of a tile's bytes, times their groups' scales."""
    group, byte = tl.arange(0, VALUE_WIDE // 32), tl.arange(0, 16)
    is_group = is_seen[:, None] & (group < VALUE_DIM // 32)[None, :]
    scales = tl.load(
        value_scale + slot[:, None] * value_scale_strides[2] + group[None, :] * value_scale_strides[3],
        mask=is_group,
        other=0.0,
    ).to(tl.float32)[:, :, None]
    place = (group[:, None] * 16 + byte[None, :])[None, :, :] * value_strides[3]
    codes = tl.load(
        value + slot[:, None, None] * value_strides[2] + place, mask=is_group[:, :, None], other=0
    ).to(tl.int32)
    lower = (((codes & 15) - 8).to(tl.float32) * scales).to(WEIGHTS)
    upper = (((codes >> 4) - 8).to(tl.float32) * scales).to(WEIGHTS)
    return tl.reshape(lower, [TILE, VALUE_WIDE // 2]), tl.reshape(upper, [TILE, VALUE_WIDE // 2])


@triton.jit(do_not_specialize=["parts"])
def join_parts(
    part_out,  # [B * Hq, parts, VALUE_DIM], dense
    part_lse,  # [B * Hq, parts], dense
    out,  # [B * Hq, VALUE_DIM], dense
    lse,  # [B * Hq], dense
    parts,
    VALUE_DIM: tl.constexpr,
    VALUE_WIDE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Join the parts of one query head, `TILE` at a time."""
    head = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, VALUE_WIDE)
    peak, total = float("-inf"), 0.0
    sums = tl.zeros([VALUE_WIDE], tl.float32)
    for start in range(0, parts, TILE):
        part = start + tl.arange(0, TILE)
        is_part = part < parts
        each = tl.load(part_lse + head * parts + part, mask=is_part, other=float("-inf"))
        numbers = tl.load(
            part_out + (head * parts + part)[:, None] * VALUE_DIM + number[None, :],
            mask=is_part[:, None] & (number < VALUE_DIM)[None, :],
            other=0.0,
        )
        higher = tl.maximum(peak, tl.max(each, 0))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        weights, shrink = tl.exp(each - level), tl.exp(peak - level)
        total = total * shrink + tl.sum(weights, 0)
        sums = sums * shrink + tl.sum(weights[:, None] * numbers, 0)
        peak = higher
    total = tl.where(total == 0, 1.0, total)
    tl.store(lse + head, peak + tl.log(total))
    tl.store(
        out + head * VALUE_DIM + number, (sums / total).to(out.dtype.element_ty), mask=number < VALUE_DIM
    )
