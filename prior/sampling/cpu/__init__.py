"""Steps of sampling as compiled loops on a CPU, of which nothing else of the prior knows the inside.

What they earn their lines with: times as fast as the same steps of torch's own operations (for int8 those are
`torch._weight_int8pack_mm`), and as the step that torch.compile makes of them. An AMD EPYC with AVX-512 and
no AMX, 2 threads, a prior of 26 M parameters, 64 codes, torch 2.14.1; medians of 10 turns in one run, least
and greatest in brackets: timed at real-time priority, as others kept both cores busy, for which threads that
wait for each other pay.

    weights            full              bf16              int8
    1 sequence, torch  2.7 (0.10..4.0)   3.7 (2.0..7.1)    2.9 (0.02..10.6)
    1, torch.compile   3.1 (0.12..15.8)  4.1 (1.8..13.7)   3.6 (0.01..10.8)
    4, torch           4.8 (1.2..5.5)    2.8 (0.60..5.0)   4.0 (0.16..6.9)
    4, torch.compile   5.1 (1.3..7.3)    2.7 (0.83..7.1)   4.1 (0.21..9.5)

    python pipelines/benchmark.py prior --codes 64 --batch-sizes 1 4 --compile --train-batch-size 0

Other processors: the loops take vectors of 16, 8 or 4 numbers as the processor has them (wherever numba
runs), and no instructions for bfloat16 or int8: what is small is widened in registers, and read faster. Only
the one above was measured.
"""
