"""Makes a matrix in four bits dense: numbers of a table of 16, times a scale of a block of inputs."""

import triton
import triton.language as tl


@triton.jit
def table_dense(
    values,
    scale,
    table,
    out,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes a block of one scale for each of COLUMNS of the N outputs: BLOCK rows of bytes, ROWS of them at a time.

    Of each byte the upper half is of the first of two inputs. A look-up hits the first-level cache, which holds the
    whole table.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    own = column < N
    first = tl.program_id(1).to(tl.int64) * N
    times = tl.load(scale + first + column, mask=own)[None, :]
    row = tl.arange(0, ROWS)[:, None]
    for begin in tl.static_range(0, BLOCK, ROWS):
        at = (first * BLOCK + begin * N) + row * N + column[None, :]
        held = tl.load(values + at, mask=own[None, :]).to(tl.int32)
        upper = tl.load(table + (held >> 4)) * times
        lower = tl.load(table + (held & 15)) * times
        to = (first * BLOCK + begin * N) * 2 + row * (2 * N) + column[None, :]
        tl.store(out + to, upper.to(tl.bfloat16), mask=own[None, :])
        tl.store(out + to + N, lower.to(tl.bfloat16), mask=own[None, :])
