"""The fused kernel of the `triton` backend. Imported only where Triton is.

One program computes a tile of TILE_H x TILE_W image queries of one head. Its keys come in three parts, through
one online softmax (base 2, the scale and log2(e) folded into one factor):

    1. text tokens, in blocks of BLOCK
    2. down-sampled tokens, in blocks of BLOCK
    3. the bounding box of the tile's windows, clipped at the image's border, in boxes of KEY_H x KEY_W

Boxes are read straight from the raster layout: nothing is permuted, padded or copied. Where the chip has a
tensor memory accelerator a box is one descriptor load, elsewhere it is computed addresses. Tokens outside
the circle are masked in registers by |q - k|^2 < r^2, in coordinates relative to the tile, exact in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Far below any score, and finite: a row whose first keys are all masked must not compute inf - inf.
_NOTHING: tl.constexpr = tl.constexpr(-1.0e30)
_LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _image_box(
    source,
    b,
    h,
    y,
    x,
    rows,
    columns,
    s_b,
    s_h,
    s_n,
    H: tl.constexpr,
    W: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
):
    """H x W tokens from row y, column x: [H * W, D]. Outside the grid: zeros."""
    if TMA:
        return source.load([b, h, y, x, 0]).reshape(H * W, D)
    else:
        index = tl.arange(0, H * W)
        yy = y + index // W
        xx = x + index % W
        inside = (yy >= 0) & (yy < rows) & (xx >= 0) & (xx < columns)
        # 64 bits for where the box begins, 32 within it: an 8K image has more elements than 32 bits count.
        start = source + b.to(tl.int64) * s_b + h.to(tl.int64) * s_h + (y * columns + x).to(tl.int64) * s_n
        offsets = (index // W * columns + index % W) * s_n
        return tl.load(start + offsets[:, None] + tl.arange(0, D)[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def _token_block(source, b, h, n, count, s_b, s_h, s_n, BLOCK: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr):
    """BLOCK tokens from token n of a list of `count`: [BLOCK, D]. Beyond its end: zeros."""
    if TMA:
        return source.load([b, h, n, 0]).reshape(BLOCK, D)
    else:
        index = tl.arange(0, BLOCK)
        start = source + b.to(tl.int64) * s_b + h.to(tl.int64) * s_h + n * s_n
        offsets = (index * s_n)[:, None] + tl.arange(0, D)[None, :]
        return tl.load(start + offsets, mask=(n + index < count)[:, None], other=0.0)


@triton.jit
def _step(acc, top, total, scores, value, scale, IEEE: tl.constexpr):
    """One block of the online softmax. scores: raw q.k, masked ones -inf."""
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.math.exp2(scores * scale - new_top[:, None])
    shrink = tl.math.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None]
    if IEEE:
        acc = tl.dot(weights, value, acc, input_precision="ieee")
    else:
        acc = tl.dot(weights.to(value.dtype), value, acc)
    return acc, new_top, total


@triton.jit
def _scores(query, key, IEEE: tl.constexpr):
    if IEEE:
        return tl.dot(query, tl.trans(key), input_precision="ieee")
    else:
        return tl.dot(query, tl.trans(key))


@triton.jit
def _list_part(
    acc,
    top,
    total,
    query,
    key_source,
    value_source,
    b,
    h,
    count,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    scale,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
    IEEE: tl.constexpr,
):
    """Keys that every query sees: whole blocks unmasked, then the rest."""
    whole = count // BLOCK * BLOCK
    for n in range(0, whole, BLOCK):
        key = _token_block(key_source, b, h, n, count, k_b, k_h, k_n, BLOCK, D, TMA)
        scores = _scores(query, key, IEEE)
        value = _token_block(value_source, b, h, n, count, v_b, v_h, v_n, BLOCK, D, TMA)
        acc, top, total = _step(acc, top, total, scores, value, scale, IEEE)
    if whole < count:
        key = _token_block(key_source, b, h, whole, count, k_b, k_h, k_n, BLOCK, D, TMA)
        scores = _scores(query, key, IEEE)
        scores = tl.where((whole + tl.arange(0, BLOCK) < count)[None, :], scores, float("-inf"))
        value = _token_block(value_source, b, h, whole, count, v_b, v_h, v_n, BLOCK, D, TMA)
        acc, top, total = _step(acc, top, total, scores, value, scale, IEEE)
    return acc, top, total


@triton.jit(do_not_specialize=["text", "pooled", "query_rows", "key_rows", "columns", "shift", "first_query", "radius"])
def window_kernel(
    query_source,
    key_source,
    value_source,
    text_key,
    text_value,
    pooled_key,
    pooled_value,
    out,
    lse,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    p_b,
    p_h,
    p_n,
    o_b,
    o_n,
    l_b,
    l_h,
    text,
    pooled,
    query_rows,
    key_rows,
    columns,
    shift,
    first_query,
    radius,
    scale,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    BLOCK: tl.constexpr,
    TMA: tl.constexpr,
    IEEE: tl.constexpr,
    LSE: tl.constexpr,
):
    """Sources are 5-D descriptors [batch, heads, rows, columns, D] or pointers to the first image token
    (4-D and the first token for text and down-sampled tokens). shift: the queries' first row within the
    keys' rows. first_query: the token of `out` that the first image query writes.
    """
    tiles_x = tl.cdiv(columns, TILE_W)
    tile = tl.program_id(0)
    b = tl.program_id(1) // HEADS
    h = tl.program_id(1) % HEADS
    row = tile // tiles_x * TILE_H
    column = tile % tiles_x * TILE_W

    M: tl.constexpr = TILE_H * TILE_W
    index = tl.arange(0, M)
    query = _image_box(query_source, b, h, row, column, query_rows, columns, q_b, q_h, q_n, TILE_H, TILE_W, D, TMA)
    acc = tl.zeros([M, D], dtype=tl.float32)
    top = tl.full([M], _NOTHING, dtype=tl.float32)
    total = tl.zeros([M], dtype=tl.float32)

    acc, top, total = _list_part(
        acc, top, total, query, text_key, text_value, b, h, text,
        k_b, k_h, k_n, v_b, v_h, v_n, scale, BLOCK, D, TMA, IEEE,
    )  # fmt: skip
    acc, top, total = _list_part(
        acc, top, total, query, pooled_key, pooled_value, b, h, pooled,
        p_b, p_h, p_n, p_b, p_h, p_n, scale, BLOCK, D, TMA, IEEE,
    )  # fmt: skip

    # The window's box in the keys' own rows, and the circle in coordinates relative to the tile.
    tile_row = row + shift
    halo = radius - 1
    low_y = tl.maximum(tile_row - halo, 0)
    low_x = tl.maximum(column - halo, 0)
    high_y = tl.minimum(tl.minimum(tile_row + TILE_H, query_rows + shift) + halo, key_rows)
    high_x = tl.minimum(column + TILE_W + halo, columns)
    boxes_x = tl.cdiv(high_x - low_x, KEY_W)
    boxes = tl.cdiv(tl.maximum(high_y - low_y, 0), KEY_H) * boxes_x
    query_y = (index // TILE_W).to(tl.float32)
    query_x = (index % TILE_W).to(tl.float32)
    # |q - k|^2 < r^2  <=>  2 q.k - |k|^2 > |q|^2 - r^2: one side per key, one per query.
    bound = query_y * query_y + query_x * query_x - (radius * radius).to(tl.float32)
    key_index = tl.arange(0, KEY_H * KEY_W)
    for box in range(0, boxes):
        y = low_y + box // boxes_x * KEY_H
        x = low_x + box % boxes_x * KEY_W
        key = _image_box(key_source, b, h, y, x, key_rows, columns, k_b, k_h, k_n, KEY_H, KEY_W, D, TMA)
        scores = _scores(query, key, IEEE)
        key_y = y + key_index // KEY_W
        key_x = x + key_index % KEY_W
        near_y = (key_y - tile_row).to(tl.float32)
        near_x = (key_x - column).to(tl.float32)
        inside = (key_y < key_rows) & (key_x < columns)
        size = tl.where(inside, near_y * near_y + near_x * near_x, 1.0e9)
        dots = query_y[:, None] * (2 * near_y)[None, :] + (query_x[:, None] * (2 * near_x)[None, :] - size[None, :])
        scores = tl.where(dots > bound[:, None], scores, float("-inf"))
        value = _image_box(value_source, b, h, y, x, key_rows, columns, v_b, v_h, v_n, KEY_H, KEY_W, D, TMA)
        acc, top, total = _step(acc, top, total, scores, value, scale, IEEE)

    seen = total > 0
    acc = acc / tl.where(seen, total, 1.0)[:, None]
    out_y = row + index // TILE_W
    out_x = column + index % TILE_W
    inside = (out_y < query_rows) & (out_x < columns)
    token = (first_query + out_y * columns + out_x).to(tl.int64)
    start = out + b.to(tl.int64) * o_b + h * D
    tl.store(
        start + token[:, None] * o_n + tl.arange(0, D)[None, :], acc.to(out.dtype.element_ty), mask=inside[:, None]
    )
    if LSE:
        value_lse = tl.where(seen, (top + tl.math.log2(tl.where(seen, total, 1.0))) * _LN2, float("-inf"))
        tl.store(lse + b.to(tl.int64) * l_b + h.to(tl.int64) * l_h + token, value_lse, mask=inside)
