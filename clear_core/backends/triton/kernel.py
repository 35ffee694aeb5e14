"""The fused kernel of the `triton` backend. Imported only where Triton is.

One program computes a tile of TILE_H x TILE_W image queries of one head. Its keys come in three parts, through
one online softmax (base 2, the scale and log2(e) folded into one factor):

    1. text tokens, in blocks of BLOCK
    2. extra tokens that all queries see (down-sampled ones, references without a window), in blocks of BLOCK
    3. the KV tiles of KEY_H x KEY_W that the plan lists, first the full ones, then the partial ones under a mask

Tiles are read from the raster layout: nothing is permuted, padded or copied. Where the chip has a tensor memory
accelerator a tile is one descriptor load, elsewhere addresses are computed. Keys outside the window are masked in
registers by |q - k|^2 < r^2 (`clear_core.window`), exact in float32.

Arguments are flat, strides included (q_, k_, v_ and so on, then b, h, n for batch, heads, tokens): tuples of arguments
compile to the same instructions but need Triton 3.3, and this compiles from Triton 3.1 on.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Far below any score, and finite: a row whose first keys are all masked must not compute inf - inf.
MASKED_SCORE: tl.constexpr = tl.constexpr(-1.0e15)
# Further than any grid and its window reach.
FAR: tl.constexpr = tl.constexpr(1000000)
CAP: tl.constexpr = tl.constexpr(2.0**80)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_tile(
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
    INSIDE: tl.constexpr,
):
    """H x W tokens from row y, column x: [H * W, D]. Beyond the last row or column: zeros. INSIDE: there are none."""
    if TMA:
        return source.load([b, h, y, x, 0]).reshape(H * W, D)
    else:
        index = tl.arange(0, H * W)
        # 64 bits for where the tile begins, 32 within it: an 8K image has more elements than 32 bits count.
        start = source + b.to(tl.int64) * s_b + h.to(tl.int64) * s_h + (y * columns + x).to(tl.int64) * s_n
        offsets = ((index // W * columns + index % W) * s_n)[:, None] + tl.arange(0, D)[None, :]
        if INSIDE:
            return tl.load(start + offsets)
        else:
            inside = (index // W < rows - y) & (index % W < columns - x)
            return tl.load(start + offsets, mask=inside[:, None], other=0.0)


@triton.jit
def _load_block(source, b, h, n, count, s_b, s_h, s_n, BLOCK: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr):
    """BLOCK tokens from token n of a list of `count`: [BLOCK, D]. Beyond its end: zeros."""
    if TMA:
        return source.load([b, h, n, 0]).reshape(BLOCK, D)
    else:
        index = tl.arange(0, BLOCK)
        # 64 bits for where the block begins: references seen completely may have more elements than 32 bits count.
        start = source + b.to(tl.int64) * s_b + h.to(tl.int64) * s_h + (tl.zeros([], tl.int64) + n) * s_n
        offsets = (index * s_n)[:, None] + tl.arange(0, D)[None, :]
        return tl.load(start + offsets, mask=(n + index < count)[:, None], other=0.0)


@triton.jit
def _online_softmax(acc, m_i, l_i, scores, value, scale, IEEE: tl.constexpr):
    """One block of the online softmax. m_i: running maximum, l_i: running sum. scores: raw q.k, masked ones -inf."""
    m_new = tl.maximum(m_i, tl.max(scores, 1) * scale)
    p = tl.math.exp2(scores * scale - m_new[:, None])
    alpha = tl.math.exp2(m_i - m_new)
    l_i = l_i * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    if IEEE:
        acc = tl.dot(p, value, acc, input_precision="ieee")
    else:
        acc = tl.dot(p.to(value.dtype), value, acc)
    return acc, m_new, l_i


@triton.jit
def _qk(query, key, IEEE: tl.constexpr):
    if IEEE:
        return tl.dot(query, tl.trans(key), input_precision="ieee")
    else:
        return tl.dot(query, tl.trans(key))


@triton.jit
def _attend_list(
    acc,
    m_i,
    l_i,
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
    """Keys that every query sees: complete blocks unmasked, then the rest."""
    whole = count // BLOCK * BLOCK
    for n in range(0, whole, BLOCK):
        key = _load_block(key_source, b, h, n, count, k_b, k_h, k_n, BLOCK, D, TMA)
        scores = _qk(query, key, IEEE)
        value = _load_block(value_source, b, h, n, count, v_b, v_h, v_n, BLOCK, D, TMA)
        acc, m_i, l_i = _online_softmax(acc, m_i, l_i, scores, value, scale, IEEE)
    if whole < count:
        key = _load_block(key_source, b, h, whole, count, k_b, k_h, k_n, BLOCK, D, TMA)
        scores = _qk(query, key, IEEE)
        scores = tl.where((whole + tl.arange(0, BLOCK) < count)[None, :], scores, float("-inf"))
        value = _load_block(value_source, b, h, whole, count, v_b, v_h, v_n, BLOCK, D, TMA)
        acc, m_i, l_i = _online_softmax(acc, m_i, l_i, scores, value, scale, IEEE)
    return acc, m_i, l_i


@triton.jit
def _attend_tiles(
    acc,
    m_i,
    l_i,
    query,
    key_source,
    value_source,
    boxes,
    begin,
    end,
    b,
    h,
    key_rows,
    columns,
    q_y,
    q_x,
    r_squared,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    scale,
    KEY_H: tl.constexpr,
    KEY_W: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
    IEEE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The plan's KV tiles `begin` up to `end`. MASKED: partial tiles, on the edge of the window or of the image."""
    for box in range(begin, end):
        y = tl.load(boxes + 2 * box)
        x = tl.load(boxes + 2 * box + 1)
        key = _load_tile(key_source, b, h, y, x, key_rows, columns, k_b, k_h, k_n, KEY_H, KEY_W, D, TMA, not MASKED)
        scores = _qk(query, key, IEEE)
        if MASKED:
            # Visible: |q - k|^2 <= r^2 - 1. The sign of what is left decides, so a score is capped at far above any
            # score or far below; no comparison. A row of keys is squared once for its columns, a column for its rows.
            key_y = y + tl.arange(0, KEY_H)
            key_x = x + tl.arange(0, KEY_W)
            key_y = tl.where(key_y < key_rows, key_y, FAR).to(tl.float32)
            key_x = tl.where(key_x < columns, key_x, FAR).to(tl.float32)
            away_y = key_y[None, :] - q_y[:, None]
            away_x = key_x[None, :] - q_x[:, None]
            room = (r_squared - away_y * away_y) * CAP
            cost = away_x * (away_x * CAP)
            cap = (room[:, :, None] - cost[:, None, :]).reshape(scores.shape[0], KEY_H * KEY_W)
            scores = tl.minimum(scores, cap)
        value = _load_tile(value_source, b, h, y, x, key_rows, columns, v_b, v_h, v_n, KEY_H, KEY_W, D, TMA, not MASKED)
        acc, m_i, l_i = _online_softmax(acc, m_i, l_i, scores, value, scale, IEEE)
    return acc, m_i, l_i


@triton.jit(
    do_not_specialize=[
        "l_b", "l_h", "text", "extra", "query_rows", "columns", "key_rows", "key_columns", "first_row",
        "first_key_row", "height", "key_height", "radius",
    ]
)  # fmt: skip
def window_kernel(
    query_source,
    key_source,
    value_source,
    text_key,
    text_value,
    extra_key,
    extra_value,
    ranges,
    boxes,
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
    tk_b,
    tk_h,
    tk_n,
    tv_b,
    tv_h,
    tv_n,
    ek_b,
    ek_h,
    ek_n,
    ev_b,
    ev_h,
    ev_n,
    o_b,
    o_n,
    l_b,
    l_h,
    text,
    extra,
    query_rows,
    columns,
    key_rows,
    key_columns,
    first_row,
    first_key_row,
    height,
    key_height,
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
    (4-D and the first token for text and extra tokens). ranges, boxes: a `tile_plan.TilePlan`. height and
    first_row: of the queries' whole grid and of their first row in it; the keys' have key_ before them.
    out and lse begin at the first of these queries.
    """
    tiles_x = tl.cdiv(columns, TILE_W)
    tile = tl.program_id(0)
    b = tl.program_id(1) // HEADS
    h = tl.program_id(1) % HEADS
    row = tile // tiles_x * TILE_H
    column = tile % tiles_x * TILE_W

    M: tl.constexpr = TILE_H * TILE_W
    index = tl.arange(0, M)
    query = _load_tile(
        query_source, b, h, row, column, query_rows, columns, q_b, q_h, q_n, TILE_H, TILE_W, D, TMA, False
    )
    acc = tl.zeros([M, D], dtype=tl.float32)
    m_i = tl.full([M], MASKED_SCORE, dtype=tl.float32)
    l_i = tl.zeros([M], dtype=tl.float32)

    acc, m_i, l_i = _attend_list(
        acc, m_i, l_i, query, text_key, text_value, b, h, text,
        tk_b, tk_h, tk_n, tv_b, tv_h, tv_n, scale, BLOCK, D, TMA, IEEE,
    )  # fmt: skip
    acc, m_i, l_i = _attend_list(
        acc, m_i, l_i, query, extra_key, extra_value, b, h, extra,
        ek_b, ek_h, ek_n, ev_b, ev_h, ev_n, scale, BLOCK, D, TMA, IEEE,
    )  # fmt: skip

    # The centre of each query's window, in rows and columns of the key grid: `layout.same_place`.
    q_y = (2 * (first_row + row + index // TILE_W) + 1) * key_height // (2 * height) - first_key_row
    q_x = (2 * (column + index % TILE_W) + 1) * key_columns // (2 * columns)
    q_y, q_x = q_y.to(tl.float32), q_x.to(tl.float32)
    r_squared = (radius * radius).to(tl.float32) - 0.5
    begin = tl.load(ranges + tile)
    partial = tl.load(ranges + tl.num_programs(0) + tile)
    end = tl.load(ranges + 2 * tl.num_programs(0) + tile)
    acc, m_i, l_i = _attend_tiles(
        acc, m_i, l_i, query, key_source, value_source, boxes, begin, partial, b, h, key_rows, key_columns,
        q_y, q_x, r_squared, k_b, k_h, k_n, v_b, v_h, v_n, scale, KEY_H, KEY_W, D, TMA, IEEE, False,
    )  # fmt: skip
    acc, m_i, l_i = _attend_tiles(
        acc, m_i, l_i, query, key_source, value_source, boxes, partial, end, b, h, key_rows, key_columns,
        q_y, q_x, r_squared, k_b, k_h, k_n, v_b, v_h, v_n, scale, KEY_H, KEY_W, D, TMA, IEEE, True,
    )  # fmt: skip

    seen = l_i > 0
    acc = acc / tl.where(seen, l_i, 1.0)[:, None]
    out_y = row + index // TILE_W
    out_x = column + index % TILE_W
    inside = (out_y < query_rows) & (out_x < columns)
    token = (out_y * columns + out_x).to(tl.int64)
    start = out + b.to(tl.int64) * o_b + h * D
    tl.store(
        start + token[:, None] * o_n + tl.arange(0, D)[None, :], acc.to(out.dtype.element_ty), mask=inside[:, None]
    )
    if LSE:
        value_lse = tl.where(seen, (m_i + tl.math.log2(tl.where(seen, l_i, 1.0))) * LN2, float("-inf"))
        tl.store(lse + b.to(tl.int64) * l_b + h.to(tl.int64) * l_h + token, value_lse, mask=inside)
