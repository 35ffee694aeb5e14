"""The fused kernel of the `triton` backend. Imported only where Triton is.

One program computes a tile of TILE_H x TILE_W image queries of one head. Its keys come in three parts, through
one online softmax (base 2, the scale and log2(e) folded into one factor):

    1. text tokens, in blocks of BLOCK
    2. extra tokens that all queries see (down-sampled ones, references seen whole), in blocks of BLOCK
    3. the boxes of KEY_H x KEY_W that the plan lists, first those seen whole, then those that need a mask

Boxes are read straight from the raster layout: nothing is permuted, padded or copied. Where the chip has a
tensor memory accelerator a box is one descriptor load, elsewhere it is computed addresses. Tokens outside
the circle are masked in registers by |q - k|^2 < r^2, exact in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Far below any score, and finite: a row whose first keys are all masked must not compute inf - inf.
_NOTHING: tl.constexpr = tl.constexpr(-1.0e15)
# Further than any grid and its window reach.
_FAR: tl.constexpr = tl.constexpr(1000000)
_CAP: tl.constexpr = tl.constexpr(2.0**80)
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


@triton.jit
def _box_part(
    acc,
    top,
    total,
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
    centre_y,
    centre_x,
    edge,
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
    """The plan's boxes `begin` up to `end`. MASKED: those that the circle's edge or the image's runs through."""
    key_index = tl.arange(0, KEY_H * KEY_W)
    for box in range(begin, end):
        y = tl.load(boxes + 2 * box)
        x = tl.load(boxes + 2 * box + 1)
        key = _image_box(key_source, b, h, y, x, key_rows, columns, k_b, k_h, k_n, KEY_H, KEY_W, D, TMA)
        scores = _scores(query, key, IEEE)
        if MASKED:
            # Visible: |q - k|^2 <= r^2 - 1. The sign of what is left decides, so a score is capped at far above any
            # score or far below; no comparison, and a thread has few different rows and columns to square.
            key_y = y + key_index // KEY_W
            key_x = x + key_index % KEY_W
            key_y = tl.where(key_y < key_rows, key_y, _FAR).to(tl.float32)
            key_x = tl.where(key_x < columns, key_x, _FAR).to(tl.float32)
            away_y = key_y[None, :] - centre_y[:, None]
            away_x = key_x[None, :] - centre_x[:, None]
            cap = (edge - away_y * away_y) * _CAP - away_x * (away_x * _CAP)
            scores = tl.minimum(scores, cap)
        value = _image_box(value_source, b, h, y, x, key_rows, columns, v_b, v_h, v_n, KEY_H, KEY_W, D, TMA)
        acc, top, total = _step(acc, top, total, scores, value, scale, IEEE)
    return acc, top, total


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
    (4-D and the first token for text and extra tokens). ranges, boxes: a `plan.TilePlan`. height and
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
    query = _image_box(query_source, b, h, row, column, query_rows, columns, q_b, q_h, q_n, TILE_H, TILE_W, D, TMA)
    acc = tl.zeros([M, D], dtype=tl.float32)
    top = tl.full([M], _NOTHING, dtype=tl.float32)
    total = tl.zeros([M], dtype=tl.float32)

    acc, top, total = _list_part(
        acc, top, total, query, text_key, text_value, b, h, text,
        tk_b, tk_h, tk_n, tv_b, tv_h, tv_n, scale, BLOCK, D, TMA, IEEE,
    )  # fmt: skip
    acc, top, total = _list_part(
        acc, top, total, query, extra_key, extra_value, b, h, extra,
        ek_b, ek_h, ek_n, ev_b, ev_h, ev_n, scale, BLOCK, D, TMA, IEEE,
    )  # fmt: skip

    # Where each query looks, in the keys' own rows and columns: `layout.same_place`.
    centre_y = (2 * (first_row + row + index // TILE_W) + 1) * key_height // (2 * height) - first_key_row
    centre_x = (2 * (column + index % TILE_W) + 1) * key_columns // (2 * columns)
    centre_y, centre_x = centre_y.to(tl.float32), centre_x.to(tl.float32)
    edge = (radius * radius).to(tl.float32) - 0.5
    begin = tl.load(ranges + tile)
    partial = tl.load(ranges + tl.num_programs(0) + tile)
    end = tl.load(ranges + 2 * tl.num_programs(0) + tile)
    acc, top, total = _box_part(
        acc, top, total, query, key_source, value_source, boxes, begin, partial, b, h, key_rows, key_columns,
        centre_y, centre_x, edge, k_b, k_h, k_n, v_b, v_h, v_n, scale, KEY_H, KEY_W, D, TMA, IEEE, False,
    )  # fmt: skip
    acc, top, total = _box_part(
        acc, top, total, query, key_source, value_source, boxes, partial, end, b, h, key_rows, key_columns,
        centre_y, centre_x, edge, k_b, k_h, k_n, v_b, v_h, v_n, scale, KEY_H, KEY_W, D, TMA, IEEE, True,
    )  # fmt: skip

    seen = total > 0
    acc = acc / tl.where(seen, total, 1.0)[:, None]
    out_y = row + index // TILE_W
    out_x = column + index % TILE_W
    inside = (out_y < query_rows) & (out_x < columns)
    token = (out_y * columns + out_x).to(tl.int64)
    start = out + b.to(tl.int64) * o_b + h * D
    tl.store(
        start + token[:, None] * o_n + tl.arange(0, D)[None, :], acc.to(out.dtype.element_ty), mask=inside[:, None]
    )
    if LSE:
        value_lse = tl.where(seen, (top + tl.math.log2(tl.where(seen, total, 1.0))) * _LN2, float("-inf"))
        tl.store(lse + b.to(tl.int64) * l_b + h.to(tl.int64) * l_h + token, value_lse, mask=inside)
