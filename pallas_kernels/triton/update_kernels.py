"""Passes over slots of stacked adapters [layers, slots, N]: sums of squares, sums of gradients, AdamW.

A program visits blocks of the slots that take part, whose number and order it reads: those of the others cost nothing.
Of a slot it touches what lies within its rank. Gradients [layers, their slots, N] have each slot's at a place of its
own, or none. `sizes` holds layers, slots, N, the gradients' slots, and where a slot's sums begin.
"""

import triton
import triton.language as tl


@triton.jit
def blocks(count, sizes, BLOCK: tl.constexpr):
    """Returns the blocks of all slots that take part."""
    return tl.load(count) * tl.load(sizes) * tl.cdiv(tl.load(sizes + 2), BLOCK)


@triton.jit
def block_of(
    item, order, places, ranks, sizes, RANK: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr, BLOCK: tl.constexpr
):
    """Returns a block's slot, its number within that, its offsets and its gradients', each with those that count."""
    slots, n = tl.load(sizes + 1), tl.load(sizes + 2)
    if EVEN:
        n = tl.multiple_of(n, 16)
    chunks = tl.cdiv(n, BLOCK)
    each = tl.load(sizes) * chunks
    slot = tl.load(order + item // each)
    block = item % each
    others, place = tl.load(sizes + 3), tl.load(places + slot)
    first = ((block // chunks) * slots + slot).to(tl.int64) * n
    first_g = ((block // chunks) * others + place).to(tl.int64) * n
    if EVEN:
        first, first_g = tl.multiple_of(first, 16), tl.multiple_of(first_g, 16)
    at = block % chunks * BLOCK + tl.arange(0, BLOCK)
    # Up to fifteen zeros more, so that a thread's neighbours in memory count or not together.
    rank = tl.load(ranks + slot)
    if ROWS:
        own = (at < n) & (at < tl.cdiv(n // RANK * rank, 16) * 16)
    else:
        own = (at < n) & (at % RANK < tl.cdiv(rank, 16) * 16)
    limit = tl.where(place < others, n, 0)
    if EVEN:
        limit = tl.multiple_of(limit, 16)
    return slot, block, first + at, own, first_g + at, own & (at < limit)


@triton.jit
def slot_squares(
    before,
    g,
    order,
    count,
    places,
    ranks,
    sizes,
    out,
    ALL: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """The sum of squares of each block of a slot, into out [slots, ALL], which is `before`."""
    for item in range(tl.program_id(0), blocks(count, sizes, BLOCK), PROGRAMS):
        slot, block, _, _, at, own = block_of(item, order, places, ranks, sizes, RANK, ROWS, EVEN, BLOCK)
        new = tl.load(g + at, own, other=0.0)
        tl.store(out + slot * ALL + tl.load(sizes + 4) + block, tl.sum(new * new, 0))


@triton.jit
def slot_sums(
    sums,
    g,
    begin,
    order,
    count,
    places,
    ranks,
    sizes,
    out,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Adds gradients to their sums, in place, which begin anew where `begin` is not 0."""
    for item in range(tl.program_id(0), blocks(count, sizes, BLOCK), PROGRAMS):
        slot, _, at, own, at_g, own_g = block_of(item, order, places, ranks, sizes, RANK, ROWS, EVEN, BLOCK)
        old = tl.load(sums + at, own, other=0.0)
        old = tl.where(tl.load(begin + slot) == 0, old, tl.zeros_like(old))
        tl.store(out + at, old + tl.load(g + at_g, own_g, other=0.0), own)


@triton.jit
def step(w, g, m, v, numbers, w_out, m_out, v_out, at, own, at_g, own_g):
    """Takes a slot's AdamW step in a block, by its numbers; returns the new weights."""
    weights = tl.load(w + at, own, other=0.0)
    new = tl.load(g + at_g, own_g, other=0.0) * tl.load(numbers)
    beta1, beta2 = tl.load(numbers + 1), tl.load(numbers + 2)
    mu = beta1 * tl.load(m + at, own, other=0.0) + (1 - beta1) * new
    nu = beta2 * tl.load(v + at, own, other=0.0) + (1 - beta2) * (new * new)
    root = tl.sqrt_rn(tl.div_rn(nu, tl.load(numbers + 4) + tl.zeros_like(nu)))
    direction = tl.div_rn(tl.div_rn(mu, tl.load(numbers + 3) + tl.zeros_like(mu)), root + tl.load(numbers + 5))
    weights = weights - tl.load(numbers + 6) * (direction + tl.load(numbers + 7) * weights)
    tl.store(w_out + at, weights, own)
    tl.store(m_out + at, mu, own)
    tl.store(v_out + at, nu, own)
    return weights


@triton.jit
def slot_adamw(
    w,
    m,
    v,
    g,
    numbers,
    order,
    count,
    places,
    ranks,
    sizes,
    w_out,
    m_out,
    v_out,
    NUMBERS: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """An AdamW step, in place; numbers [slots, NUMBERS] in the order of `pallas_kernels.slot_updates.Update`."""
    for item in range(tl.program_id(0), blocks(count, sizes, BLOCK), PROGRAMS):
        slot, _, at, own, at_g, own_g = block_of(item, order, places, ranks, sizes, RANK, ROWS, EVEN, BLOCK)
        step(w, g, m, v, numbers + slot * NUMBERS, w_out, m_out, v_out, at, own, at_g, own_g)


@triton.jit
def slot_adamw_averaged(
    w,
    m,
    v,
    average,
    g,
    numbers,
    order,
    count,
    places,
    ranks,
    sizes,
    w_out,
    m_out,
    v_out,
    average_out,
    NUMBERS: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """The same, and the step of a running average of the weights, whose share is the last of the numbers."""
    for item in range(tl.program_id(0), blocks(count, sizes, BLOCK), PROGRAMS):
        slot, _, at, own, at_g, own_g = block_of(item, order, places, ranks, sizes, RANK, ROWS, EVEN, BLOCK)
        old = tl.load(average + at, own, other=0.0)
        weights = step(w, g, m, v, numbers + slot * NUMBERS, w_out, m_out, v_out, at, own, at_g, own_g)
        share = tl.load(numbers + slot * NUMBERS + 8)
        tl.store(average_out + at, old + share * (weights - old), own)
