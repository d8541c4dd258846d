"""Steps of sampling as compiled loops on a CPU, of which nothing else of the prior knows the inside.

What they earn their lines with: times as fast as the same steps of torch's own operations (for int8 those are
`torch._weight_int8pack_mm`), and as the step that torch.compile makes of them. An AMD EPYC with AVX-512 and
no AMX, 2 threads, a prior of 26 M parameters, 64 codes, torch 2.14.1; medians of 10 turns in one run, least
and greatest in brackets, timed at real-time priority (`chrt --rr 1`), as others kept both cores busy.

    weights            full            bf16            int8
    1 sequence, torch  3.3 (2.8..4.0)  6.8 (3.8..8.5)  3.1 (2.8..3.9)
    1, torch.compile   3.4 (2.9..4.3)  6.4 (3.6..7.5)  3.4 (2.7..3.9)
    4, torch           4.8 (4.4..5.2)  2.8 (2.4..3.0)  4.0 (3.5..4.4)
    4, torch.compile   5.0 (4.2..5.4)  2.5 (2.1..2.9)  3.8 (3.1..4.0)

    python pipelines/benchmark.py prior --codes 64 --batch-sizes 1 4 --compile --train-batch-size 0

Other processors: the loops take vectors of 16, 8 or 4 numbers as the processor has them (wherever numba
runs), and no instructions for bfloat16 or int8: what is small is widened in registers, and read faster. Only
the one above was measured.
"""
