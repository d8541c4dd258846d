"""`benchmark.py search --tune`: what is measured and chosen, and the table that it writes.

Left out: the kernel, which needs a GPU; here torch stands in for it, by a clock of its own.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pipelines.benchmarks import registry
from pipelines.benchmarks.registry import Spread
from pipelines.benchmarks.search import speed
from pipelines.benchmarks.search import tune as tuning
from pipelines.benchmarks.search.tune import CANDIDATES, chosen, tune
from tests.helpers.running import assert_refused, read, run_script
from tokenizer.search import cuda
from tokenizer.search.blocks import VARIABLE, BlockSizes, read_table

CPU = torch.device("cpu")
FAST, FASTER, WRONG, TOO_LARGE = CANDIDATES[1], CANDIDATES[1]._replace(stages=2), CANDIDATES[2], CANDIDATES[3]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def launch(
        z: Tensor, entries: Tensor, offset: Tensor, blocks: BlockSizes, programs: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        if blocks == TOO_LARGE:
            raise RuntimeError("out of resource: shared memory")
        two = (z @ entries.T + offset).topk(2, largest=False)
        clock[0] += {FAST: 2.0, FASTER: 1.0, WRONG: 0.5}.get(blocks, 4.0)
        return two.values[:, 0] + (blocks == WRONG), two.indices[:, 0], two.values[:, 1]

    monkeypatch.setattr(cuda, "launch", launch)
    monkeypatch.setattr(registry, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(tuning, "CANDIDATES", CANDIDATES[:5])


def test_the_fastest_that_are_right_are_chosen_and_written(
    stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "new" / "table.json"
    values = tune([(40, 30, 4), (20, 50, 4), (9, 9, 16)], 3, 1, CPU, table)
    assert read_table(table) == {"cpu": {4: FASTER, 16: FASTER}}
    assert values["table"] == str(table) and values["widths"].keys() == {"4", "16"}
    ratio = values["widths"]["4"]["ratio"]
    assert ratio[str(tuple(cuda.BLOCKS))] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert (ratio[str(tuple(FASTER))]["median"], ratio[str(tuple(FAST))]["median"]) == (0.25, 0.5)
    assert not {str(tuple(WRONG)), str(tuple(TOO_LARGE))} & ratio.keys()
    out = capsys.readouterr().out
    assert all(part in out for part in ("cpu, 40x30x4, 20x50x4: ", "chosen", str(table), VARIABLE))


def test_what_may_be_faster_by_chance_is_not_chosen() -> None:
    usual, other = cuda.BLOCKS, CANDIDATES[1]
    assert chosen({usual: Spread(1, 1, 1), other: Spread(0.98, 0.9, 1.1)}) == usual
    assert chosen({usual: Spread(1, 1, 1), other: Spread(0.9, 0.8, 1.0)}) == other


def test_candidates_differ() -> None:
    assert CANDIDATES[0] == cuda.BLOCKS and len(set(CANDIDATES)) == len(CANDIDATES)


def test_the_script_measures_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, gpu = tmp_path / "table.json", torch.device("cuda")
    words = ("search", "--tune", "--shapes", "5x4x8", "--turns", 3, "--table", table, "--output", tmp_path)
    refused = run_script("benchmark", *words, "--device", "cpu", code=2)
    assert_refused(refused, "--tune", "GPU", "there is none here")
    assert not table.exists()
    monkeypatch.setattr(speed, "chosen_device", lambda name: gpu)
    monkeypatch.setattr(speed, "machine", lambda *_: {"device": "cuda: X"})
    monkeypatch.setattr(speed, "tune", lambda *given: {"given": [str(part) for part in given]})
    for runs in (True, False):
        monkeypatch.setattr(cuda, "runs", lambda device, runs=runs: runs)
        done = run_script("benchmark", *words, code=None)
    assert_refused(done, "--tune", "does not run on cuda", "triton and a C compiler")
    values = read(tmp_path / "benchmark-search.json")
    assert values["given"] == ["[(5, 4, 8)]", "3", "2", "cuda", str(table)] and values["device"] == "cuda: X"


def test_the_table_is_where_the_search_looks_unless_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "table.json"))
    assert tuning.chosen_table(None) == tmp_path / "table.json"
    assert tuning.chosen_table(tmp_path / "other.json") == tmp_path / "other.json"
    monkeypatch.setattr(tuning, "table_path", lambda: None)
    with pytest.raises(ValueError, match=r"no home folder.*--table"):
        tuning.chosen_table(None)
    assert_refused(run_script("benchmark", "search", "--table", "x.json", code=2), "--table", "--tune")
