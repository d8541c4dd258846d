"""--version of every script: one line, before anything is made.

Left out: --help (presets/test_help.py).
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.helpers.running import ROOT, Script, environment
from tests.helpers.warm import run_words

SCRIPTS = sorted(path.stem for path in (ROOT / "pipelines").glob("*.py") if path.stem != "__init__")
LINE = f"tokenloom {version('tokenloom')} (torch {torch.__version__})\n"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_its_version(script: Script, name: str, tmp_path: Path) -> None:
    for words in ((), ("small", "--output", tmp_path / "out"), ("--no-such-flag",)):
        finished = script(name, *words, "--version")
        assert (finished.code, finished.out, finished.err) == (0, LINE, ""), words
    assert not list(tmp_path.iterdir())


def test_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / "sample.py"), "--version"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, LINE, "")


@pytest.mark.parametrize(("rank", "expected"), [("0", LINE), ("1", "")])
def test_of_several_processes_one_says_it(rank: str, expected: str) -> None:
    done = run_words(ROOT / "pipelines" / "sample.py", "--version", variables={"RANK": rank})
    assert (done.code, done.out, done.err) == (0, expected, "")


def test_the_list_of_scripts_is_whole() -> None:
    assert {"train_tokenizer", "encode_dataset", "train_prior", "sample", "evaluate", "quickstart"} < set(
        SCRIPTS
    )
    assert {"benchmark", "cut_pictures", "export", "page", "quantize_vae"} < set(SCRIPTS)
