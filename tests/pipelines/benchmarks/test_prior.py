"""The benchmark `prior`: what it compares, prints and writes, of a tiny model.

Left out: how fast anything is.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.benchmarks.prior import sampling as benchmark_prior
from pipelines.benchmarks.prior import training as benchmark_training
from pipelines.benchmarks.prior.sampling import (
    READING,
    PriorBenchmark,
    differing,
    ready_priors,
    sampling_jobs,
)
from pipelines.benchmarks.prior.training import OURS, PEER, PRECISIONS, build, learner, llama_like, walks
from pipelines.run.own_process import in_own_process
from prior import Prior
from prior.sampling.cpu.products import installed
from tests.helpers.running import assert_refused, read, run_script
from tokenizer.installation import install_extra

pytest.importorskip("transformers")

SIZES = {"codes": 6, "codebook_size": 10, "dim": 16, "depth": 2, "heads": 2}
WORDS = [word for name, value in SIZES.items() for word in ("--" + name.replace("_", "-"), value)]
TINY = ("prior", "--device", "cpu", "--turns", 2, "--warm-up", 1, *WORDS)
NAMES = {f"{way} {form}" for way in ("tokenloom", "plain") for form in ("full", "bf16", "int8")} | {
    "generate full",
    "generate bf16",
    READING,
}


CONFIG = llama_like(**SIZES)
CPU = torch.device("cpu")


def test_all_jobs_draw_as_many_codes_from_equal_weights() -> None:
    prior = build(CONFIG, CPU)
    jobs = sampling_jobs(prior, ready_priors(prior, CPU), 3)
    assert jobs.keys() == NAMES
    for name, job in jobs.items():
        drawn = job()
        if name.startswith(("tokenloom", "plain")):
            assert isinstance(drawn, torch.Tensor) and drawn.shape == (3, 1, 6)
        elif name.startswith("generate"):
            assert isinstance(drawn, torch.Tensor) and drawn.shape == (3, 1 + 6)  # the class comes first
            assert bool((drawn[:, 0] == 10).all())
        else:
            whole = sum(p.double().sum() for p in prior.parameters())
            assert isinstance(drawn, list) and len(drawn) == 6
            assert all(torch.isclose(x.double(), whole, atol=1e-3) for x in drawn)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_both_learn_the_same_from_the_same_batches(precision: str) -> None:
    ours, theirs = (learner(name, CONFIG, 4, precision, CPU) for name in (OURS, PEER))
    for _ in range(60):
        ours()
        theirs()
    # The peer may predict "no class" too: one entry more, of a logit of 0 where all others are small.
    gap = math.log(11 / 10)
    assert ours.losses == pytest.approx([loss - gap for loss in theirs.losses], abs=0.01)
    assert ours.losses[-1] < ours.losses[0] - 0.05
    first, again = walks(CONFIG, 2, 0), walks(CONFIG, 2, 0)
    assert torch.equal(first, again) and not torch.equal(first, walks(CONFIG, 2, 1))
    moves = (first.diff(dim=2) + 2) % 10
    assert first.shape == (2, 1, 6) and moves.max() <= 4 and moves.unique().numel() > 2


@pytest.mark.filterwarnings("ignore")  # of generate
def test_the_script_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def some_here(
        function: Callable[..., float], name: str, precision: str, *rest: Any, threads: int
    ) -> float:
        """One of each name and precision in a process of its own; what the others grow by may be nothing, as
        this one has been larger."""
        asked.append((name, precision))
        if (name == OURS) == (precision == PRECISIONS[0]):
            grown: float = in_own_process(function, name, precision, *rest, threads=threads)
            assert grown > 0
            return grown
        return function(name, precision, *rest) + 1e-9

    monkeypatch.setattr(benchmark_training, "in_own_process", some_here)
    done = run_script("benchmark", *TINY, "--batch-sizes", 1, 3, "--memory", "--output", tmp_path)
    values = read(tmp_path / "benchmark-prior.json")
    assert (values["benchmark"], values["turns"]) == ("prior", 2)
    assert values["sampling"].keys() == {"1", "3"}
    for rows in values["sampling"].values():
        assert rows.keys() == NAMES
        assert all(0 < row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"] for row in rows.values())
        assert rows[READING].keys() == {"ms"}
        assert ("differing" in rows["tokenloom bf16"]) == (rows is values["sampling"]["3"])
        same = rows["generate full"]["faster"]
        assert same["low"] == same["high"] == 1
        for form in ("full", "bf16", "int8"):
            ours, plain = (rows[f"{way} {form}"] for way in ("tokenloom", "plain"))
            assert (
                "ours_faster" not in ours
                and plain["ours_faster"]["low"] <= plain["ms"]["high"] / ours["ms"]["low"]
            )
            assert plain["ours_faster"]["high"] >= plain["ms"]["low"] / ours["ms"]["high"]
        whole, half = (rows[f"generate {form}"] for form in ("full", "bf16"))
        # Half of the bytes in the same time is half of the bandwidth.
        share = whole["bandwidth"]["median"] * whole["ms"]["median"]
        assert half["bandwidth"]["median"] * half["ms"]["median"] == pytest.approx(share / 2, rel=0.5)
    for precision in PRECISIONS:
        rows = values["training"][precision]
        assert rows.keys() == {OURS, PEER} == values["training_peak_mib"][precision].keys()
        assert rows[PEER]["faster"]["median"] == 1 and rows[OURS]["ms"]["low"] > 0
        assert all(value > 0 for value in values["training_peak_mib"][precision].values())
    assert asked == [(name, precision) for precision in PRECISIONS for name in (OURS, PEER)]
    for part in ("Training on 8 × 6 codes, bf16", "Drawing 6 codes of 3 at once", READING, values["command"]):
        assert part in done.out
    assert values["versions"].keys() == {"tokenloom", "python", "torch", "transformers", "numba"}


def test_what_cannot_be_measured_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, message in (
        (("--turns", 0), "turns is 0"),
        (("--codes", 0), "codes is 0"),
        (("--batch-sizes", 0), "batch_sizes are (0,)"),
        (("--warm-up", -1), "warm_up is -1"),
        (("--train-batch-size", -1), "train_batch_size is -1"),
    ):
        assert_refused(run_script("benchmark", "prior", *words, code=None), message)
    with pytest.raises(ValueError, match="batch_sizes is empty"):
        PriorBenchmark(batch_sizes=())
    monkeypatch.setattr(benchmark_prior, "find_spec", lambda name: None)
    done = run_script("benchmark", *TINY, code=None)
    assert_refused(done, "transformers", install_extra("bench"))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own
def test_what_torch_compiles_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = build(CONFIG, CPU)
    steps: list[int] = []

    class Eager(benchmark_prior.StaticDecoder):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments[:-1], options={"backend": "eager"})

        def advance(self, x: torch.Tensor) -> torch.Tensor:
            steps.append(self.length)
            return super().advance(x)

    monkeypatch.setattr(benchmark_prior, "StaticDecoder", Eager)
    jobs = sampling_jobs(prior, ready_priors(prior, CPU), 2, compiled=True)
    assert jobs.keys() == NAMES | {f"torch.compile {form}" for form in ("full", "bf16", "int8")}
    for _ in range(2):
        steps.clear()
        torch.manual_seed(3)
        drawn = jobs["torch.compile full"]()
        torch.manual_seed(3)
        assert isinstance(drawn, torch.Tensor) and torch.equal(drawn, prior.sample(2))
        assert steps == list(range(6))


def test_training_can_be_left_out(tmp_path: Path) -> None:
    words = ("--batch-sizes", 1, "--train-batch-size", 0, "--memory", "--output", tmp_path)
    done = run_script("benchmark", *TINY, *words)
    values = read(tmp_path / "benchmark-prior.json")
    assert values["training"] == values["training_peak_mib"] == {} and "Training" not in done.out


def test_every_flag_is_explained_and_loops_are_compiled_where_they_can_be() -> None:
    text = run_script("benchmark", "prior", "--help").out
    flags = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(PriorBenchmark)}
    assert [flag for flag in flags if flag not in text] == []
    ready = ready_priors(build(CONFIG, CPU), CPU)["tokenloom int8"]
    assert ready.prepared is not None and ready.prepared.compiled == installed()


def test_codes_that_differ_one_by_one_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = build(CONFIG, CPU).double()
    assert differing(prior, 4) == 0
    alone = Prior.sample

    def other(self: Prior, batch: int, **options: Any) -> torch.Tensor:
        codes = alone(self, batch, **options)
        codes[:, :, 0] += batch == 1  # the first of six codes
        return codes

    monkeypatch.setattr(Prior, "sample", other)
    assert differing(prior, 4) == pytest.approx(1 / 6)
