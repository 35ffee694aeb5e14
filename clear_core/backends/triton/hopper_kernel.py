"""The fused kernel for Hopper chips (sm_90), warp-specialised, in Gluon. Imported only where Triton is.

The same attention as `kernel`, over the same tile plan. A program has three partitions that only meet at barriers in
shared memory:

    the producer            one warp; copies queries, keys and values into shared memory with the tensor memory
                            accelerator, as far ahead as there are buffers
    two consumers           four warps each; each computes 8 x 8 of the tile's 8 x 16 queries

A consumer starts the product of block i + 1 with its queries, then the product of block i's weights with its values,
and computes the softmax of block i + 1 while the second product runs: the matrix units seldom wait. Programs stay for
several tiles (one program for each multiprocessor), so that the next tile's blocks are on their way while this tile's
result is written.

Keys of a tile come in blocks of KEY_H x KEY_W, in the order that both sides count by:

    1. complete blocks of text tokens, complete blocks of extra tokens, full KV tiles: no mask
    2. what is left of the text tokens and of the extra tokens: one block each
    3. partial KV tiles
    a tile that sees nothing has one block, all of it masked

Barriers: `full` counts the bytes of copies, `empty` the consumers that are done with a buffer. The n-th use of a
buffer waits for parity n of `full` and for parity n - 1 of `empty`; the first use of a buffer passes.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .kernel import CAP, FAR, LN2, MASKED_SCORE

# Triton 3.9 renamed them.
_copy_in = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_copy_out = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global

_EVERYWHERE: gl.constexpr = gl.constexpr(1.0e30)
"""A squared radius that no key is beyond, one outside the grid included."""
_WHOLE: gl.constexpr = gl.constexpr(0)
_REST: gl.constexpr = gl.constexpr(1)
_BOX: gl.constexpr = gl.constexpr(2)


@gluon.jit
def _corner(boxes, box):
    """Row and column of a KV tile's first key, in one load."""
    pair = gl.load(boxes.to(gl.pointer_type(gl.int64)) + box)
    return pair.to(gl.int32), (pair >> 32).to(gl.int32)


@gluon.jit
def _work(geometry, ranges, item, HEADS: gl.constexpr):
    """What one item is: its batch entry, head, first row and column, and its ranges of boxes in the plan.

    Read for each item: values that live as long as the program would take registers of the consumers.
    """
    tiles = gl.load(geometry + 8)
    tile = item % tiles
    tiles_x = gl.cdiv(gl.load(geometry + 1), 16)
    begin = gl.load(ranges + tile)
    partial = gl.load(ranges + tiles + tile)
    end = gl.load(ranges + 2 * tiles + tile)
    return item // tiles // HEADS, item // tiles % HEADS, tile // tiles_x * 8, tile % tiles_x * 16, begin, partial, end


@gluon.jit
def _fill(desc, place, buffer, full, empty, slot, turn):
    """Copy one block of a descriptor into a buffer's slot once its last reader is done. turn: of this slot."""
    mbarrier.wait(empty.index(slot), (turn & 1) ^ 1)
    mbarrier.expect(full.index(slot), desc.block_type.nbytes)
    _copy_in(desc, place, full.index(slot), buffer.index(slot).reshape(desc.block_shape))


@gluon.jit
def _fill_list(key_desc, value_desc, b, h, token, block, ring, STAGES: gl.constexpr):
    """Keys and values from token `token` of a list. Returns the next block's number."""
    keys, values, key_full, value_full, key_empty, value_empty = ring
    _fill(key_desc, [b, h, token, 0], keys, key_full, key_empty, block % STAGES, block // STAGES)
    _fill(value_desc, [b, h, token, 0], values, value_full, value_empty, block % STAGES, block // STAGES)
    return block + 1


@gluon.jit
def _fill_boxes(key_desc, value_desc, boxes, begin, end, b, h, block, ring, STAGES: gl.constexpr):
    """The KV tiles `begin` up to `end`. Returns the next block's number."""
    keys, values, key_full, value_full, key_empty, value_empty = ring
    for box in range(begin, end):
        y, x = _corner(boxes, box)
        _fill(key_desc, [b, h, y, x, 0], keys, key_full, key_empty, block % STAGES, block // STAGES)
        _fill(value_desc, [b, h, y, x, 0], values, value_full, value_empty, block % STAGES, block // STAGES)
        block += 1
    return block


@gluon.jit
def _produce(
    query_desc,
    key_desc,
    value_desc,
    text_key,
    text_value,
    extra_key,
    extra_value,
    queries,
    ring,
    ranges,
    boxes,
    geometry,
    lists,
    items,
    HEADS: gl.constexpr,
    STAGES: gl.constexpr,
    QUERY_STAGES: gl.constexpr,
):
    """The producer: every block of every item, in the order that the module's text says."""
    query, query_full, query_empty = queries
    text, text_rest, extra, extra_rest = lists
    N: gl.constexpr = text_key.block_shape[2]
    block = 0
    turn = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        b, h, row, column, begin, partial, end = _work(geometry, ranges, item, HEADS)
        for half in gl.static_range(2):
            slot = 2 * (turn % QUERY_STAGES) + half
            place = [b, h, row, column + 8 * half, 0]
            _fill(query_desc, place, query, query_full, query_empty, slot, turn // QUERY_STAGES)
        for i in range(text):
            block = _fill_list(text_key, text_value, b, h, i * N, block, ring, STAGES)
        for i in range(extra):
            block = _fill_list(extra_key, extra_value, b, h, i * N, block, ring, STAGES)
        block = _fill_boxes(key_desc, value_desc, boxes, begin, partial, b, h, block, ring, STAGES)
        if (text_rest > 0) | (text + extra + extra_rest + end - begin == 0):
            block = _fill_list(text_key, text_value, b, h, text * N, block, ring, STAGES)
        if extra_rest > 0:
            block = _fill_list(extra_key, extra_value, b, h, extra * N, block, ring, STAGES)
        block = _fill_boxes(key_desc, value_desc, boxes, partial, end, b, h, block, ring, STAGES)
        turn += 1


@gluon.jit
def _hide_rest(scores, present):
    """Hide all but the first `present` keys of a block of a list."""
    n = gl.arange(0, scores.shape[1], gl.SliceLayout(0, scores.type.layout))
    return gl.where((n < present)[None, :], scores, float("-inf"))


@gluon.jit
def _hide_outside(scores, y, x, centre, limits, r_squared, KEY_H: gl.constexpr, KEY_W: gl.constexpr):
    """Hide the keys of a KV tile outside the window or the grid: `kernel._attend_tiles` says how.

    centre: rows and columns of the queries' windows, float32 [64] in two layouts. limits: rows and columns of keys.
    """
    q_y, q_x = centre
    rows, columns = limits
    cube = scores.reshape([scores.shape[0], KEY_H, KEY_W])
    layout: gl.constexpr = cube.type.layout
    key_y = y.to(gl.float32) + gl.arange(0, KEY_H, gl.SliceLayout(0, gl.SliceLayout(2, layout))).to(gl.float32)
    key_x = x.to(gl.float32) + gl.arange(0, KEY_W, gl.SliceLayout(0, gl.SliceLayout(1, layout))).to(gl.float32)
    away_y = gl.where(key_y < rows, key_y, FAR)[None, :] - q_y[:, None]
    away_x = gl.where(key_x < columns, key_x, FAR)[None, :] - q_x[:, None]
    room = (r_squared - away_y * away_y) * CAP
    cost = away_x * (away_x * CAP)
    cube = gl.minimum(cube, room[:, :, None] - cost[:, None, :])
    return gl.convert_layout(cube.reshape(scores.shape), scores.type.layout, assert_trivial=True)


@gluon.jit
def _softmax(scores, top, total, scale):
    """One block of the online softmax: its weights, the new maximum and sum, and what earlier sums shrink by."""
    new_top = gl.maximum(top, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - new_top[:, None])
    shrink = gl.exp2(top - new_top)
    return weights, new_top, total * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def _start_scores(query, ring, block, KEY_H: gl.constexpr, KEY_W: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    """Start the product of the queries with a block's keys."""
    keys, _values, key_full, _value_full, _key_empty, _value_empty = ring
    N: gl.constexpr = KEY_H * KEY_W
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    mbarrier.wait(key_full.index(block % STAGES), block // STAGES & 1)
    key = keys.index(block % STAGES).reshape([N, D]).permute((1, 0))
    return warpgroup_mma(query, key, gl.full([64, N], 0.0, gl.float32, layout), use_acc=False, is_async=True)


@gluon.jit
def _start_values(
    acc, weights, ring, block, KEY_H: gl.constexpr, KEY_W: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr
):
    """Start adding a block's values, weighted, to the result."""
    _keys, values, _key_full, value_full, _key_empty, _value_empty = ring
    mbarrier.wait(value_full.index(block % STAGES), block // STAGES & 1)
    return warpgroup_mma(weights, values.index(block % STAGES).reshape([KEY_H * KEY_W, D]), acc, is_async=True)


@gluon.jit
def _free(empty, block, STAGES: gl.constexpr):
    mbarrier.arrive(empty.index(block % STAGES))


@gluon.jit
def _advance(
    state,
    query,
    ring,
    block,
    where,
    boxes,
    centre,
    limits,
    r_squared,
    scale,
    KIND: gl.constexpr,
    KEY_H: gl.constexpr,
    KEY_W: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Scores and softmax of `block`, while the values of the block before are added.

    KIND: _WHOLE, no mask; _REST, `where` keys of the block are present; _BOX, `where` is its number in the plan.
    """
    acc, weights, top, total = state
    product = _start_scores(query, ring, block, KEY_H, KEY_W, D, STAGES)
    acc = _start_values(acc, weights, ring, block - 1, KEY_H, KEY_W, D, STAGES)
    if KIND == _BOX:
        y, x = _corner(boxes, where)
    scores = warpgroup_mma_wait(1, [product])
    _free(ring[4], block, STAGES)
    if KIND == _REST:
        scores = _hide_rest(scores, where)
    if KIND == _BOX:
        scores = _hide_outside(scores, y, x, centre, limits, r_squared, KEY_H, KEY_W)
    exact, top, total, shrink = _softmax(scores, top, total, scale)
    acc = warpgroup_mma_wait(0, [acc])
    _free(ring[5], block - 1, STAGES)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))[:, None]
    weights = gl.convert_layout(exact, weights.type.layout).to(weights.dtype)
    return acc, weights, top, total


@gluon.jit
def _consume(
    out_desc,
    queries,
    ring,
    lse,
    l_h,
    ranges,
    boxes,
    geometry,
    lists,
    radius,
    scale,
    items,
    HALF: gl.constexpr,
    HEADS: gl.constexpr,
    D: gl.constexpr,
    KEY_H: gl.constexpr,
    KEY_W: gl.constexpr,
    STAGES: gl.constexpr,
    QUERY_STAGES: gl.constexpr,
    LSE: gl.constexpr,
):
    """A consumer: the left (HALF 0) or right 8 x 8 queries of every item."""
    buffers, query_full, query_empty = queries
    text, text_rest, extra, extra_rest = lists
    N: gl.constexpr = KEY_H * KEY_W
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    cube: gl.constexpr = gl.full([64, N], 0.0, gl.float32, score_layout).reshape([64, KEY_H, KEY_W]).type.layout
    in_rows = gl.arange(0, 64, gl.SliceLayout(1, gl.SliceLayout(2, cube)))
    in_columns = gl.arange(0, 64, gl.SliceLayout(1, gl.SliceLayout(1, cube)))
    r_squared = (radius * radius).to(gl.float32) - 0.5
    block = 0
    turn = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        b, h, row, column, begin, partial, end = _work(geometry, ranges, item, HEADS)
        column += 8 * HALF
        columns, key_columns = gl.load(geometry + 1), gl.load(geometry + 3)
        first_row, first_key_row = gl.load(geometry + 4), gl.load(geometry + 5)
        height, key_height = gl.load(geometry + 6), gl.load(geometry + 7)
        # The centre of each query's window: `layout.same_place`.
        q_y = (2 * (first_row + row + in_rows // 8) + 1) * key_height // (2 * height) - first_key_row
        q_x = (2 * (column + in_columns % 8) + 1) * key_columns // (2 * columns)
        centre = (q_y.to(gl.float32), q_x.to(gl.float32))
        limits = (gl.load(geometry + 2).to(gl.float32), key_columns.to(gl.float32))
        whole = text + extra + partial - begin
        rests = (text_rest > 0).to(gl.int32) + (extra_rest > 0).to(gl.int32)

        slot = 2 * (turn % QUERY_STAGES) + HALF
        mbarrier.wait(query_full.index(slot), turn // QUERY_STAGES & 1)
        query = buffers.index(slot).reshape([64, D])
        # The first block is of any kind: both masks, one of which hides nothing.
        is_box = (whole + rests == 0) & (partial < end)
        rest = gl.where(text_rest > 0, text_rest, extra_rest)
        product = _start_scores(query, ring, block, KEY_H, KEY_W, D, STAGES)
        y, x = _corner(boxes, gl.where(is_box, partial, 0))
        scores = warpgroup_mma_wait(0, [product])
        _free(ring[4], block, STAGES)
        scores = _hide_rest(scores, gl.where((whole > 0) | is_box, N, rest))
        scores = _hide_outside(scores, y, x, centre, limits, gl.where(is_box, r_squared, _EVERYWHERE), KEY_H, KEY_W)
        top = gl.full([64], MASKED_SCORE, gl.float32, row_layout)
        total = gl.full([64], 0.0, gl.float32, row_layout)
        exact, top, total, _shrink = _softmax(scores, top, total, scale)
        weights = gl.convert_layout(exact, gl.DotOperandLayout(0, out_layout, 2)).to(buffers.dtype)
        state = (gl.full([64, D], 0.0, gl.float32, out_layout), weights, top, total)

        for i in range(1, whole):
            state = _advance(
                state, query, ring, block + i, 0, boxes, centre, limits, r_squared, scale,
                _WHOLE, KEY_H, KEY_W, D, STAGES,
            )  # fmt: skip
        for i in range(gl.maximum(1 - whole, 0), rests):
            present = gl.where((i == 0) & (text_rest > 0), text_rest, extra_rest)
            state = _advance(
                state, query, ring, block + whole + i, present, boxes, centre, limits, r_squared, scale,
                _REST, KEY_H, KEY_W, D, STAGES,
            )  # fmt: skip
        for i in range(gl.maximum(1 - whole - rests, 0), end - partial):
            state = _advance(
                state, query, ring, block + whole + rests + i, partial + i, boxes, centre, limits, r_squared, scale,
                _BOX, KEY_H, KEY_W, D, STAGES,
            )  # fmt: skip
        block += gl.maximum(whole + rests + end - partial, 1)

        acc, weights, top, total = state
        acc = warpgroup_mma_wait(0, [_start_values(acc, weights, ring, block - 1, KEY_H, KEY_W, D, STAGES)])
        _free(ring[5], block - 1, STAGES)
        seen = total > 0
        share = gl.convert_layout(1.0 / gl.where(seen, total, 1.0), gl.SliceLayout(1, out_layout))
        # The queries are not needed any more: their buffer is where the result's copy begins.
        query.store((acc * share[:, None]).to(buffers.dtype))
        fence_async_shared()
        _copy_out(out_desc, [b, h, row, column, 0], buffers.index(slot))
        if LSE:
            index = gl.arange(0, 64, row_layout)
            out_y = row + index // 8
            out_x = column + index % 8
            found = gl.where(seen, (top + gl.log2(gl.where(seen, total, 1.0))) * LN2, float("-inf"))
            place = lse + (item // gl.load(geometry + 8)).to(gl.int64) * l_h + (out_y * columns + out_x)
            gl.store(place, found, mask=(out_y < gl.load(geometry)) & (out_x < columns))
        tma.store_wait(0)
        mbarrier.arrive(query_empty.index(slot))
        turn += 1


@gluon.jit(do_not_specialize=["l_h", "text", "text_rest", "extra", "extra_rest", "radius", "items"])
def hopper_kernel(
    query_desc,
    key_desc,
    value_desc,
    text_key,
    text_value,
    extra_key,
    extra_value,
    ranges,
    boxes,
    geometry,
    out_desc,
    lse,
    l_h,
    text,
    text_rest,
    extra,
    extra_rest,
    radius,
    scale,
    items,
    HEADS: gl.constexpr,
    D: gl.constexpr,
    KEY_H: gl.constexpr,
    KEY_W: gl.constexpr,
    STAGES: gl.constexpr,
    QUERY_STAGES: gl.constexpr,
    LSE: gl.constexpr,
):
    """Descriptors [batch, heads, rows, columns, D] of queries, keys, values and the result, in blocks of 8 x 8 and
    KEY_H x KEY_W tokens; [batch, heads, tokens, D] of text and extra tokens, in blocks of KEY_H * KEY_W.

    lse: float32 [batch, heads, tokens], l_h apart for each head. ranges, boxes, geometry: a `tile_plan.TilePlan` for
    tiles of 8 x 16. text, extra: complete blocks; _rest: tokens left. scale: log2(e) included. items: tiles times
    heads times batch entries.
    """
    query = gl.allocate_shared_memory(query_desc.dtype, [2 * QUERY_STAGES, 1, 1, 8, 8, D], query_desc.layout)
    query_full = gl.allocate_shared_memory(gl.int64, [2 * QUERY_STAGES, 1], mbarrier.MBarrierLayout())
    query_empty = gl.allocate_shared_memory(gl.int64, [2 * QUERY_STAGES, 1], mbarrier.MBarrierLayout())
    keys = gl.allocate_shared_memory(key_desc.dtype, [STAGES, 1, 1, KEY_H, KEY_W, D], key_desc.layout)
    values = gl.allocate_shared_memory(value_desc.dtype, [STAGES, 1, 1, KEY_H, KEY_W, D], value_desc.layout)
    key_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2 * QUERY_STAGES):
        mbarrier.init(query_full.index(i), 1)
        mbarrier.init(query_empty.index(i), 1)
    for i in gl.static_range(STAGES):
        mbarrier.init(key_full.index(i), 1)
        mbarrier.init(value_full.index(i), 1)
        mbarrier.init(key_empty.index(i), 2)
        mbarrier.init(value_empty.index(i), 2)
    fence_async_shared()
    queries = (query, query_full, query_empty)
    ring = (keys, values, key_full, value_full, key_empty, value_empty)
    lists = (text, text_rest, extra, extra_rest)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    out_desc, queries, ring, lse, l_h, ranges, boxes, geometry, lists, radius, scale, items,
                    0, HEADS, D, KEY_H, KEY_W, STAGES, QUERY_STAGES, LSE,
                ),
            ),
            (
                _consume,
                (
                    out_desc, queries, ring, lse, l_h, ranges, boxes, geometry, lists, radius, scale, items,
                    1, HEADS, D, KEY_H, KEY_W, STAGES, QUERY_STAGES, LSE,
                ),
            ),
            (
                _produce,
                (
                    query_desc, key_desc, value_desc, text_key, text_value, extra_key, extra_value,
                    queries, ring, ranges, boxes, geometry, lists, items, HEADS, STAGES, QUERY_STAGES,
                ),
            ),
        ],
        [4, 1],
        [240, 24],  # registers of a thread: 240 too for the first consumer, which gets what is left
    )  # fmt: skip
