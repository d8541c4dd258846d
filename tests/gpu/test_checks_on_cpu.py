"""The checks for GPUs, run on the CPU at tiny sizes, so that no mistake in them waits for a GPU; their card,
and what `pytest -m gpu` says where it cannot run.

Left out: what only a GPU shows.
"""

import dataclasses
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prior.sampling import decoder_cuda
from prior.sampling import generate as generation
from prior.sampling.decoder import Decoder
from tests.gpu import codes, processes, sampling, search, training
from tests.gpu.card import Card, NotRun, machine, require
from tests.gpu.waits import PER_SEARCH, Waits, counted, warned
from tests.helpers import tiny
from tests.helpers.brute_force import normal
from tests.helpers.decoders import CONFIG
from tests.helpers.running import ROOT, environment
from tokenizer.search import cuda as search_cuda
from tokenizer.search.blocks import BlockSizes
from tokenizer.search.exact import nearest

CPU = torch.device("cpu")


def launch(
    z: Tensor, entries: Tensor, offset: Tensor, blocks: BlockSizes, programs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel's results by torch."""
    two = (z @ entries.T + offset).topk(2, largest=False)
    return two.values[:, 0], two.indices[:, 0], two.values[:, 1]


def test_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shapes = [(30, 20, 4), (1, 2, 1)]
    with search.matmul_precision("high"):
        assert search.codes_of_a_cpu(CPU, shapes, search.KINDS) == 31 * 2 * len(search.KINDS)
    assert torch.get_float32_matmul_precision() == "highest"
    assert search.errors_of_a_cpu(CPU) == 24
    assert search.timed(CPU, (50, 20, 4), 2).startswith("50x20x4: ")
    monkeypatch.setattr(search_cuda, "launch", launch)
    assert search.usable_blocks(CPU, shapes[:1]).startswith("14 of 14")
    (line,) = search.tuned(CPU, shapes[:1], 1, tmp_path)
    assert line.startswith("D 4: (")
    for installed, said in ((False, "triton"), (True, "compiler")):
        monkeypatch.setattr(search_cuda, "installed", lambda installed=installed: installed)
        monkeypatch.setattr("shutil.which", lambda name: None)
        with pytest.raises(NotRun, match=said):
            search.kernel_runs(CPU)


def test_a_wrong_search_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "nearest", lambda z, codebook, distance: torch.randint(20, (len(z),)))
    with pytest.raises(AssertionError, match=r"codes differ \(30x20x4, normal, euclidean\)"):
        search.codes_of_a_cpu(CPU, [(30, 20, 4)], ["normal"])
    with pytest.raises(AssertionError, match="nan in z"):
        search.errors_of_a_cpu(CPU)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own
def test_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    class Traced(decoder_cuda.StaticDecoder):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, options={"backend": "eager"})

    def chosen(prior: Any, prepared: Any, rows: int, steps: int) -> Any:
        if prepared.compiled:
            return decoder_cuda.static_decoder(prior, prepared, rows)
        return Decoder(prior, prepared, rows, steps)

    monkeypatch.setattr(decoder_cuda, "StaticDecoder", Traced)
    monkeypatch.setattr(generation, "chosen_decoder", chosen)
    config = dataclasses.replace(CONFIG, depth=1, grid=(2, 2))
    assert sampling.compiled_codes(CPU, config, [2, 2]).startswith("4 calls, 2 graphs")
    assert " ms a step compiled, / eager " in sampling.speed(CPU, config, 1, 2)
    monkeypatch.setattr(sampling, "drawn", lambda prior, rows, **_: normal(rows, 4, seed=id(prior) % 99))
    with pytest.raises(AssertionError, match="codes of 1 sequences differ"):
        sampling.compiled_codes(CPU, config, [1])


def test_codes() -> None:
    assert {"vq", "rvq", "fsq", "vq-cosine"} <= set(codes.discrete()) and "gaussian" not in codes.discrete()
    x = tiny.pictures(3, 3, 32, 32)
    assert codes.alone_and_together(CPU, tiny.tokenizer("fsq"), x).startswith("3 alone and together: equal")


@pytest.mark.parametrize(
    ("name", "precision", "sharded"),
    [("tokenizer/digits-small", "bf16", False), ("prior/small", "no", True)],
)
def test_training(name: str, precision: str, sharded: bool, tmp_path: Path) -> None:
    trained = training.train(CPU, name, precision, tmp_path / "run", 8, batch=4, sharded=sharded)
    assert len(trained.losses) == 8 and trained.counted_steps == 2 and trained.peak == 0
    assert (
        trained.text().startswith(f"loss {trained.losses[0]:.4g} to ") and "waits a step: " in trained.text()
    )
    assert trained.waits.searches == (2 if "digits" in name else 0)
    assert (tmp_path / "run" / "checkpoints" / "step-8").is_dir()


def test_all_presets_are_trained() -> None:
    from pipelines.presets import PRIORS, TOKENIZERS

    assert len(training.preset_names()) == len(PRIORS) + len(TOKENIZERS) > 10
    for name, preset in PRIORS.items():
        prior = training.prior_of(preset.build(), preset.timed) if name != "base" else None
        if prior is not None:
            x = training.made_up(prior, 2, 0, CPU)
            assert x.shape == (2, prior.config.num_codebooks, *prior.config.grid)
    sound = training.made_up(tiny.codec(), 2, 0, CPU)
    assert sound.shape == (2, 1, 960) and 0.1 < sound.abs().max() <= 1


def test_a_stop(tmp_path: Path) -> None:
    assert training.stop_and_go_on(CPU, tmp_path, deterministic=True) == "equal to the byte"


def test_processes() -> None:
    assert processes.collectives(CPU) == "gloo"
    assert processes.trained_in_a_group(CPU, ["vq"]).startswith("1 bottlenecks, ")
    config = dataclasses.replace(CONFIG, depth=2, dropout=0.0)
    assert "MiB of weights" in processes.sharded(CPU, config, 4, 2)


def test_waits_are_told_apart() -> None:
    with counted(CPU) as waits:
        with waits.within("forward"):
            tiny.trained("vq", steps=1)
        nearest(normal(5, 3), normal(4, 3))
        nearest(normal(0, 3), normal(4, 3))
        torch.ones(()).item()
    assert waits.searches >= 2 and waits.outside["step", "elsewhere"] == 1
    waits.reset()
    waits.inside, waits.searches = 2 * PER_SEARCH, 2
    waits.outside["step", "loop.py:1"] = 6
    waits.check(steps=3)
    said = waits.text(3)
    assert all(part in said for part in ("1.33 in searches", "2 after them"))
    for changes, message in (
        ({("backward", "x.py:2"): 1}, r"backward pass waits .*x\.py:2"),
        ({("step", "y.py:2"): 1}, r"after the passes.*y\.py:2"),
    ):
        with pytest.raises(AssertionError, match=message):
            dataclasses.replace(waits, outside=waits.outside + Counter(changes)).check(steps=3)
    with pytest.raises(AssertionError, match="5 waits in 2 searches"):
        dataclasses.replace(waits, inside=5).check(steps=3)


def test_warnings_of_waits_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = list[object]()
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    waits = Waits()
    with pytest.warns(UserWarning, match="other") as shown, warned(waits):
        for text in ("called a synchronizing CUDA operation (at x.cpp:1)", "other"):
            for _ in range(2):
                warnings.warn(text)
        warnings.warn("Synchronization debug mode is a prototype feature")
    assert waits.outside == {("step", "elsewhere"): 2} and len(shown) == 2 and modes == ["warn", 0]


def test_a_card_tells_all(tmp_path: Path) -> None:
    card = Card()
    card.note("1.5 ms | 2")
    card.end("a", "passed", 1.25)
    card.end("b", "not run: tyro is missing", 0)
    card.end("c", "failed: 3 codes\ndiffer", 2)
    card.write(tmp_path / "new" / "card.md", machine(CPU))
    text = (tmp_path / "new" / "card.md").read_text()
    assert "| a | passed | 1.2 | 1.5 ms \\| 2 |" in text and "1 passed, 1 not run, 1 failed; 3 s" in text
    assert "| b | not run: tyro is missing | 0.0 |  |" in text and "| c | failed: 3 codes differ |" in text
    assert f"torch {torch.__version__}" in text and "triton " in text


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require("json")
    with pytest.raises(NotRun, match=r"^no_such_package is missing$"):
        require("no_such_package.inner")
    with pytest.raises(ModuleNotFoundError, match="pipelines"):  # a mistake of ours
        require("pipelines.no_such_module")


# `pytest -m gpu` where the scripts' packages are missing: without a GPU, and with the CPU in its place.
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("datasets", "docstring_parser", "soundfile", "tyro"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import pytest
import torch

words = ["-p", "no:cacheprovider", "-q", "-m", "gpu", "--gpu-card", sys.argv[1]]
torch.cuda.is_available = lambda: False
assert pytest.main(words) == pytest.ExitCode.NO_TESTS_COLLECTED
sys.modules["tests.gpu.card"].DEVICE = torch.device("cpu")
torch.cuda.is_available = lambda: True
for name in ("empty_cache", "reset_peak_memory_stats", "synchronize"):
    setattr(torch.cuda, name, lambda *_: None)
print("with one")
sys.exit(pytest.main([*words, "-k", "errors or collectives or goes_on or presets"]))
"""


def test_the_command_tells_what_it_did_not_run(tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    command = [sys.executable, "-c", WITHOUT, str(card)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    without, run = done.stdout.split("with one")
    assert "checks for GPUs not run: there is no GPU" in without and "error" not in without.lower()
    assert "2 passed" in run and "not run: tyro is missing" in run and f"card of this run: {card}" in run
    rows = card.read_text().splitlines()
    assert any(row.startswith("| errors_are_those_of_a_cpu | passed |") and "24 kinds" in row for row in rows)
    missing = [row for row in rows if "| not run: tyro is missing |" in row]
    assert len(missing) == 5 and missing[0].startswith("| steps_of_presets[presets-no] |")
