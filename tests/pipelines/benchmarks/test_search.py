"""The benchmark `search`: what it compares, prints and writes, at tiny shapes.

Left out: how fast anything is.
"""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.benchmarks.search import memory as search_memory
from pipelines.benchmarks.search import speed as benchmark_search
from pipelines.benchmarks.search.speed import PEERS, SearchBenchmark, jobs, parse_shape
from tests.helpers.running import assert_refused, environment, read, run_script
from tokenizer.bottlenecks import Bottlenecked
from tokenizer.installation import install_extra
from tokenizer.search import cpu, tiles
from tokenizer.search.exact import nearest

CPU = torch.device("cpu")
WORDS = ("search", "--device", "cpu", "--turns", 3, "--warm-up", 1)


def installed(package: str) -> bool:
    return importlib.util.find_spec(PEERS[package]) is not None


def test_all_jobs_search_the_same() -> None:
    found = jobs((60, 20, 4), CPU)
    codes = found["nearest"]()
    assert isinstance(codes, torch.Tensor) and codes.shape == (60,)
    same = found["nearest torch"]()
    assert isinstance(same, torch.Tensor) and torch.equal(same, codes)
    products, cdist = found["torch.mm"](), found["torch.cdist"]()
    assert isinstance(products, torch.Tensor) and products.shape == (60, 20)
    assert isinstance(cdist, torch.Tensor) and torch.equal(cdist, codes)
    for name in ("vq eval", "vq train"):
        out = found[name]()
        assert isinstance(out, Bottlenecked) and torch.equal(out.codes.flatten(), codes)
    # The training forward learns: its codebook moves, and that of the other stays.
    for name, still in (("vq eval", True), ("vq train", False)):
        first, second = found[name](), found[name]()
        assert isinstance(first, Bottlenecked) and isinstance(second, Bottlenecked)
        assert torch.equal(first.stats["commitment"], second.stats["commitment"]) == still


def test_each_way_is_the_one_it_is_named_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "COMPILED_FROM", 0)
    asked: list[str] = []

    def counted(name: str, function: Any) -> Any:
        return lambda *arguments: (asked.append(name), function(*arguments))[1]

    monkeypatch.setattr(cpu, "propose", counted("loops", cpu.propose))
    monkeypatch.setattr(cpu, "installed", lambda: True)
    pytest.importorskip("numba")
    found = jobs((60, 20, 4), CPU)
    for name, way in (("nearest", ["loops"]), ("nearest torch", [])):
        asked.clear()
        found[name]()
        assert asked == way


@pytest.mark.skipif(
    not installed("faiss-cpu"),
    reason=f"faiss-cpu needs {install_extra('bench')}",
)
def test_faiss_finds_the_same_codes() -> None:
    z, codebook = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (50, 20))
    _, codes = benchmark_search.faiss_search(z, codebook)()  # type: ignore[misc]
    assert torch.equal(torch.from_numpy(codes)[:, 0], nearest(z, codebook))


def test_the_script_prints_and_writes(tmp_path: Path) -> None:
    done = run_script("benchmark", *WORDS, "--shapes", "60x20x4", "33x1x3", "--output", tmp_path / "out")
    values = read(tmp_path / "out" / "benchmark-search.json")
    assert (values["benchmark"], values["turns"]) == ("search", 3)
    assert list(values["shapes"]) == ["60x20x4", "33x1x3"]
    assert values["missing"] == [package for package in PEERS if not installed(package)]
    expected = {
        "nearest",
        "nearest torch",
        "torch.mm",
        "torch.cdist",
        "vq eval",
        "vq train",
    }
    expected |= {"faiss"} if installed("faiss-cpu") else set()
    if installed("vector-quantize-pytorch"):
        expected |= {"VectorQuantize eval", "VectorQuantize train"}
    for shape in values["shapes"].values():
        assert shape["milliseconds"].keys() == expected
        assert shape["ratio"].keys() == {"nearest", "vq eval", "vq train"}
        assert {"torch.mm", "torch.cdist"} <= shape["ratio"]["nearest"].keys() <= expected
        for value in (shape["milliseconds"]["nearest"], shape["ratio"]["vq train"]["torch.mm"]):
            assert 0 < value["low"] <= value["median"] <= value["high"]
    for part in ("60x20x4", "33x1x3", values["device"], values["command"], "nearest /", "vq train /"):
        assert part in done.out
    assert values["versions"].keys() == {"tokenloom", "python", "torch", "numba", *PEERS}
    assert "memory" not in values


def test_peers_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_search, "find_spec", lambda name: None)
    done = run_script("benchmark", *WORDS, "--shapes", "9x3x2", "--output", tmp_path)
    values = read(tmp_path / "benchmark-search.json")
    assert values["missing"] == list(PEERS)
    assert "Not installed, so not compared: faiss-cpu, vector-quantize-pytorch" in done.out
    assert install_extra("bench") in done.out
    assert values["shapes"]["9x3x2"]["ratio"]["vq train"].keys() == {"torch.mm"}


def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setattr(benchmark_search, "MEMORY_SHAPE", (300, 2000, 3))
    done = run_script("benchmark", *WORDS, "--shapes", "9x3x2", "--memory", "--output", tmp_path)
    memory = read(tmp_path / "benchmark-search.json")["memory"]
    assert memory["inputs_mib"] == pytest.approx(2300 * 3 * 4 / 2**20)
    assert memory["codes_mib"] == pytest.approx(300 * 8 / 2**20)
    assert memory["table_mib"] == pytest.approx(300 * 2000 * 4 / 2**20)
    assert 0 < memory["additional_mib"] < 300  # not 0, as it is below the peak of the process that asked
    assert "Searching 300x2000x3" in done.out
    with pytest.raises(
        ValueError, match=r"peak_of_search\(3, 0, 2\) failed .* exit code 1(.|\n)* no entries"
    ):
        search_memory.search_memory((3, 0, 2))


def test_wrong_words_are_named() -> None:
    flags = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(SearchBenchmark)}
    text = run_script("benchmark", "search", "--help").out
    assert [flag for flag in flags if flag not in text] == []
    assert parse_shape("1x20x300") == (1, 20, 300)
    for shape in ("12x3", "1x2x3x4", "0x2x3", "axbxc", "1x-2x3"):
        done = run_script("benchmark", "search", "--shapes", shape, code=None)
        assert_refused(done, f"shape is '{shape}'", "such as 16384x1024x64")
    assert_refused(run_script("benchmark", "search", "--turns", "0", code=None), "turns is 0")
    with pytest.raises(ValueError, match="shapes is empty"):
        SearchBenchmark(shapes=())
