"""How many float32 operations a second do matrix products reach here: the most that any network could?

    python -m benchmarks.matrix_product [--out FILE] [--quick]

XLA multiplies square matrices, on one core and with a program on each core at once, as seeds of a `compiled` run do. A
multiply-add counts as two operations. Sizes and numbers of threads take turns; the best size is the peak.
"""

from __future__ import annotations

import jax

from benchmarks import rows
from frugalrl.doctor import cores, one_thread_a_program, product_gflops

NAME = "matrix_product"
SIZES = (256, 512, 768, 1024)


def main() -> None:
    args = rows.parser(__doc__).parse_args()
    one_thread_a_program()
    rounds, seconds = (1, 0.1) if args.quick else (5, 0.4)
    cases = [(threads, size) for threads in sorted({1, cores()}) for size in SIZES]
    rates = {case: [] for case in cases}
    for _ in range(rounds):
        for threads, size in cases:
            rates[threads, size].append(product_gflops(size, threads, seconds))
    made = [
        rows.row(
            NAME, threads=threads, size=size, dtype="float32", backend=jax.default_backend(), rounds=rounds,
            gflops=rows.spread(values),
        )
        for (threads, size), values in rates.items()
    ]  # fmt: skip
    rows.finish(NAME, args, made, line)


def line(row: rows.Row) -> str:
    return f"{row['threads']} threads, {row['size']:5} x {row['size']:<5}{row['gflops']['median']:8.1f} GFLOP/s"


if __name__ == "__main__":
    main()
