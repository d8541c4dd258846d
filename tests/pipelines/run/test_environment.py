"""What scripts do before they import torch, and what they do not import at all.

Left out: what the libraries import (test_imports.py), and freed memory (test_memory.py).
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.run.environment import TURNS
from tests.helpers.running import ROOT, environment

SCRIPTS = sorted(p.stem for p in (ROOT / "pipelines").glob("*.py") if "    run(main)\n" in p.read_text())
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE")
# Runs a script, and prints the variables as they were when torch was imported first.
WATCHED = """
import json, os, runpy, sys

class Watch:
    def find_spec(self, name, *_):
        if name == "torch" and not seen:
            seen.update({key: os.environ.get(key) for key in names})

seen = {}
sys.meta_path.insert(0, Watch())
script, names = sys.argv[1], sys.argv[2].split()
sys.argv[1:] = ["--help"]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit:
    pass
print(json.dumps(seen))
"""
# Modules that take long to import, and that only sound, Hub data sets or plots need.
NOT_FOR_PICTURES = {"torchaudio", "soundfile", "datasets", "matplotlib"}
LOADED = """
import json, sys
from pipelines.run import command_line as cli
import pipelines.{script} as script
cli.run(script.main)
print(json.dumps([name for name in sys.modules if "." not in name]))
"""


def unprepared() -> dict[str, str]:
    """An environment as a user has it; that of the tests is prepared as the scripts' is."""
    return {name: value for name, value in environment().items() if name not in VARIABLES}


def test_every_script_prepares_its_environment_first() -> None:
    assert {"train_tokenizer", "train_prior", "sample", "quickstart", "benchmark"} <= set(SCRIPTS)
    for name in SCRIPTS:
        body = ast.parse((ROOT / "pipelines" / f"{name}.py").read_text()).body
        assert isinstance(body[1], ast.If), f"{name}.py imports before it prepares"
        assert ast.unparse(body[1]).endswith("prepare_environment()")


@pytest.mark.parametrize(
    ("given", "turns"), [({}, TURNS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_the_environment_is_set_when_torch_is_imported(given: dict[str, str], turns: str | None) -> None:
    env = unprepared() | given
    script = str(ROOT / "pipelines" / "sample.py")
    command = [sys.executable, "-c", WATCHED, script, " ".join(VARIABLES)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["GOMP_SPINCOUNT"] == turns
    assert seen["OMP_WAIT_POLICY"] == given.get("OMP_WAIT_POLICY")
    if sys.platform.startswith("linux"):
        assert seen["THP_MEM_ALLOC_ENABLE"] == "1"


def test_importing_a_package_sets_nothing() -> None:
    code = "import os; before = dict(os.environ); import pipelines.sample, prior; print(before == os.environ)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=unprepared(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"


def loaded_by(script: str, *words: object) -> set[str]:
    """The top modules that a run of a script in a process of its own leaves imported."""
    command = [sys.executable, "-c", LOADED.format(script=script), *map(str, words)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_pictures_are_encoded_decoded_and_drawn_without_what_only_others_need(
    tiny_tokenizer: Path, tiny_prior: Path, pictures: Path, tmp_path: Path
) -> None:
    encoded = loaded_by(
        "encode_dataset",
        *("--tokenizer", tiny_tokenizer, "--data.path", pictures, "--output", tmp_path / "tokens"),
    )
    drawn = loaded_by("sample", "--prior", tiny_prior, "--num", 1, "--output", tmp_path / "samples")
    assert {"torch", "PIL", "tokenizer"} <= encoded & drawn
    assert not (encoded | drawn) & NOT_FOR_PICTURES
    assert os.path.exists(tmp_path / "samples" / "samples.png")
