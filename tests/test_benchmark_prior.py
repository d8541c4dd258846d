"""The benchmark `prior`: what it compares, prints and writes, of a tiny model.

Left out: how fast anything is.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import assert_refused, read, run_script

from pipelines import benchmark_prior
from pipelines.benchmark_prior import READING, PriorBenchmark, build, sampling_jobs
from prior.numba_products import installed

pytest.importorskip("transformers")

SIZES = {"codes": 6, "codebook_size": 10, "dim": 16, "depth": 2, "heads": 2}
WORDS = [word for name, value in SIZES.items() for word in ("--" + name.replace("_", "-"), value)]
TINY = ("prior", "--device", "cpu", "--turns", 2, "--warm-up", 1, *WORDS)
NAMES = {f"tokenloom {form}" for form in ("full", "bf16", "int8")} | {
    "generate full",
    "generate bf16",
    READING,
}


def test_all_jobs_draw_as_many_codes_from_equal_weights() -> None:
    prior = build(PriorBenchmark(**SIZES), torch.device("cpu"))
    jobs = sampling_jobs(prior, 3, torch.device("cpu"))
    assert jobs.keys() == NAMES
    for name, job in jobs.items():
        drawn = job()
        if name.startswith("tokenloom"):
            assert isinstance(drawn, torch.Tensor) and drawn.shape == (3, 1, 6)
        elif name.startswith("generate"):
            assert isinstance(drawn, torch.Tensor) and drawn.shape == (3, 1 + 6)  # the class comes first
            assert bool((drawn[:, 0] == 10).all())
        else:
            whole = sum(p.double().sum() for p in prior.parameters())
            assert isinstance(drawn, list) and len(drawn) == 6
            assert all(torch.isclose(x.double(), whole, atol=1e-3) for x in drawn)


@pytest.mark.filterwarnings("ignore")  # of generate
def test_the_script_prints_and_writes(tmp_path: Path) -> None:
    done = run_script("benchmark", *TINY, "--batch-sizes", 1, 3, "--output", tmp_path)
    values = read(tmp_path / "benchmark-prior.json")
    assert (values["benchmark"], values["turns"]) == ("prior", 2)
    assert values["sampling"].keys() == {"1", "3"}
    for rows in values["sampling"].values():
        assert rows.keys() == NAMES
        assert all(0 < row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"] for row in rows.values())
        assert rows[READING].keys() == {"ms"}
        same = rows["generate full"]["faster"]
        assert same["low"] == same["high"] == 1
        whole, half = (rows[f"generate {form}"] for form in ("full", "bf16"))
        # Half of the bytes in the same time is half of the bandwidth.
        share = whole["bandwidth"]["median"] * whole["ms"]["median"]
        assert half["bandwidth"]["median"] * half["ms"]["median"] == pytest.approx(share / 2, rel=0.5)
    for part in ("Drawing 6 codes of 3 at once", READING, values["command"]):
        assert part in done.out
    assert values["versions"].keys() == {"tokenloom", "python", "torch", "transformers", "numba"}


def test_what_cannot_be_measured_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, message in (
        (("--turns", 0), "turns is 0"),
        (("--codes", 0), "codes is 0"),
        (("--batch-sizes", 0), "batch_sizes are (0,)"),
        (("--warm-up", -1), "warm_up is -1"),
    ):
        assert_refused(run_script("benchmark", "prior", *words, code=None), message)
    with pytest.raises(ValueError, match="batch_sizes is empty"):
        PriorBenchmark(batch_sizes=())
    monkeypatch.setattr(benchmark_prior, "find_spec", lambda name: None)
    done = run_script("benchmark", *TINY, code=None)
    assert_refused(done, "this benchmark compares with transformers", "tokenloom[bench]")


def test_every_flag_is_explained_and_loops_are_compiled_where_they_can_be() -> None:
    text = run_script("benchmark", "prior", "--help").out
    flags = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(PriorBenchmark)}
    assert [flag for flag in flags if flag not in text] == []
    prior = build(PriorBenchmark(**SIZES), torch.device("cpu"))
    jobs = sampling_jobs(prior, 1, torch.device("cpu"))
    ready = jobs["tokenloom int8"].__defaults__[0]  # type: ignore[attr-defined]
    assert ready.prepared.compiled == installed()
