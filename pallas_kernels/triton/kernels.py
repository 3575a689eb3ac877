"""The kernels themselves: base GEMM with a rank step, H, sums over each slot's rows.

Every size is a compile-time constant, so that nothing but pointers is passed. A row tile belongs to one slot, which is
looked up; of a tile of no slot, but SLOTS, nothing is read, and zeros are written. K, N and C may be anything; what
lies beyond them is masked. Without dropout the masks' pointers are not followed.
"""

import triton
import triton.language as tl

GOLDEN = tl.constexpr(0x9E3779B9)
MIX_1 = tl.constexpr(0x7FEB352D)
MIX_2 = tl.constexpr(0x846CA68B)


@triton.jit
def keep(key, feature, threshold):
    """The dropout mask of rows and features, bit for bit `pallas_kernels.dropout.keep_mask`'s."""
    bits = key[:, None] + feature[None, :].to(tl.uint32) * GOLDEN
    bits = bits ^ (bits >> 16)
    bits = bits * MIX_1
    bits = bits ^ (bits >> 15)
    bits = bits * MIX_2
    bits = bits ^ (bits >> 16)
    return (bits >> 8) >= threshold


@triton.jit
def dropped(left, mask, factor):
    """X with dropped features, the product rounded as `pallas_kernels.dropout.drop` rounds it."""
    rounded = factor.to(left.dtype).to(tl.float32)
    return tl.where(mask, left.to(tl.float32) * rounded, 0.0).to(left.dtype)


@triton.jit
def adapter_gemm(
    x,
    w,
    up,
    slot_of,
    h,
    keys,
    threshold,
    kept,
    y,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    RANK: tl.constexpr,
    SLOTS: tl.constexpr,
    H_WIDTH: tl.constexpr,
    H_BEGIN: tl.constexpr,
    TRANSPOSE_W: tl.constexpr,
    DROPS: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Y = X·W + drop(H·U): x [M, K], w [K, N] or transposed, up [slots, RANK, N], h [M, H_WIDTH], y [M, N]."""
    m_tiles: tl.constexpr = M // TILE_M
    n_tiles: tl.constexpr = (N + TILE_N - 1) // TILE_N
    # GROUP row tiles share the columns of W that are in the cache.
    index = tl.program_id(0)
    group = index // (GROUP * n_tiles)
    height = min(m_tiles - group * GROUP, GROUP)
    inside = index % (GROUP * n_tiles)
    m_tile = group * GROUP + inside % height
    n_tile = inside // height

    slot = tl.load(slot_of + m_tile)
    row = m_tile * TILE_M + tl.arange(0, TILE_M)
    column = n_tile * TILE_N + tl.arange(0, TILE_N)
    step = tl.arange(0, TILE_K)
    rank = tl.arange(0, RANK)
    row_long = row.to(tl.int64)
    inside_n = column[None, :] < N
    if slot >= SLOTS:
        zeros = tl.zeros((TILE_M, TILE_N), y.dtype.element_ty)
        tl.store(y + row_long[:, None] * N + column[None, :], zeros, mask=inside_n)
        return
    x_at = x + row_long[:, None] * K + step[None, :]
    if TRANSPOSE_W:
        w_at = w + column.to(tl.int64)[None, :] * K + step[:, None]
    else:
        w_at = w + step.to(tl.int64)[:, None] * N + column[None, :]
    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    for at in range(0, K, TILE_K):
        if K % TILE_K == 0:
            left = tl.load(x_at)
            right = tl.load(w_at) if N % TILE_N == 0 else tl.load(w_at, mask=inside_n, other=0.0)
        else:
            inside_k = at + step < K
            left = tl.load(x_at, mask=inside_k[None, :], other=0.0)
            right = tl.load(w_at, mask=inside_k[:, None] & inside_n, other=0.0)
        acc = tl.dot(left, right, acc)
        x_at += TILE_K
        w_at += TILE_K if TRANSPOSE_W else TILE_K * N

    mine = tl.load(h + row_long[:, None] * H_WIDTH + (H_BEGIN + rank)[None, :])
    u = tl.load(up + (slot * RANK + rank).to(tl.int64)[:, None] * N + column[None, :], mask=inside_n, other=0.0)
    if DROPS:
        mask = keep(tl.load(keys + row), column, tl.load(threshold + slot))
        acc += tl.where(mask, tl.dot(mine, u) * tl.load(kept + slot), 0.0)
    else:
        acc = tl.dot(mine, u, acc)
    tl.store(y + row_long[:, None] * N + column[None, :], acc.to(y.dtype.element_ty), mask=inside_n)


@triton.jit
def down_projection(
    x,
    down,
    scale,
    slot_of,
    keys,
    threshold,
    kept,
    h,
    K: tl.constexpr,
    RANK: tl.constexpr,
    SLOTS: tl.constexpr,
    DROPS: tl.constexpr,
    TILE_M: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """H = s·drop(X)·Dᵀ, ROWS rows a program: x [m, K], down [slots, RANK, K], h [m, RANK]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(slot_of + tl.program_id(0) // (TILE_M // ROWS))
    step = tl.arange(0, TILE_K)
    rank = tl.arange(0, RANK)
    row_long = row.to(tl.int64)
    if slot >= SLOTS:
        zeros = tl.zeros((ROWS, RANK), h.dtype.element_ty)
        tl.store(h + row_long[:, None] * RANK + rank[None, :], zeros)
        return
    x_at = x + row_long[:, None] * K + step[None, :]
    down_at = down + (slot * RANK + rank).to(tl.int64)[None, :] * K + step[:, None]
    if DROPS:
        key = tl.load(keys + row)
        low = tl.load(threshold + slot)
        factor = tl.load(kept + slot)
    acc = tl.zeros((ROWS, RANK), tl.float32)
    for at in range(0, K, TILE_K):
        inside = at + step < K
        left = tl.load(x_at) if K % TILE_K == 0 else tl.load(x_at, mask=inside[None, :], other=0.0)
        right = tl.load(down_at) if K % TILE_K == 0 else tl.load(down_at, mask=inside[:, None], other=0.0)
        if DROPS:
            left = dropped(left, keep(key, at + step, low), factor)
        acc = tl.dot(left, right, acc)
        x_at += TILE_K
        down_at += TILE_K
    acc = acc * tl.load(scale + slot)
    tl.store(h + row_long[:, None] * RANK + rank[None, :], acc.to(h.dtype.element_ty))


@triton.jit
def segment_sums(
    x,
    h,
    order,
    start,
    count,
    slot_of,
    keys,
    threshold,
    kept,
    partial,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    H_WIDTH: tl.constexpr,
    H_BEGIN: tl.constexpr,
    DROPS: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """drop(X)ᵀ·H over one segment of row tiles: x [m, C], h [m, H_WIDTH], partial [segments, C, WIDTH]."""
    segment = tl.program_id(0)
    tiles = tl.load(count + segment)
    first = tl.load(start + segment)
    column = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    width = tl.arange(0, WIDTH)
    inside = column < C
    acc = tl.zeros((TILE_C, WIDTH), tl.float32)
    for at in range(0, tiles):
        tile = tl.load(order + first + at)
        row = tile * TILE_M + tl.arange(0, TILE_M)
        row_long = row.to(tl.int64)
        left = tl.load(x + row_long[:, None] * C + column[None, :], mask=inside[None, :], other=0.0)
        right = tl.load(h + row_long[:, None] * H_WIDTH + (H_BEGIN + width)[None, :])
        if DROPS:
            slot = tl.load(slot_of + tile)
            mask = keep(tl.load(keys + row), column, tl.load(threshold + slot))
            left = dropped(left, mask, tl.load(kept + slot))
        acc = tl.dot(tl.trans(left), right, acc)
    if tiles > 0:
        to = partial + (segment * C + column).to(tl.int64)[:, None] * WIDTH + width[None, :]
        tl.store(to, acc, mask=inside[:, None])


@triton.jit
def add_segments(
    partial,
    first,
    number,
    total,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """Adds each slot's own segments in order: partial [segments, C, WIDTH], total [slots, C, WIDTH], float32."""
    slot = tl.program_id(0)
    column = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    at = column.to(tl.int64)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = column[:, None] < C
    begin = tl.load(first + slot).to(tl.int64)
    acc = tl.zeros((TILE_C, WIDTH), tl.float32)
    for one in range(0, tl.load(number + slot)):
        acc += tl.load(partial + (begin + one) * (C * WIDTH) + at, mask=inside, other=0.0)
    tl.store(total + slot.to(tl.int64) * (C * WIDTH) + at, acc, mask=inside)
