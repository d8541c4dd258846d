"""What scripts do before they import torch, and what they do not import at all.

Left out: what the libraries import (test_imports.py), and freed memory (test_memory.py).
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.run.environment import TURNS
from tests.helpers.running import ROOT, environment

SCRIPTS = sorted(p.stem for p in (ROOT / "pipelines").glob("*.py") if "    run(main)\n" in p.read_text())
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE")
# Runs a script until it imports torch, and prints the variables as they are then.
WATCHED = """
import json, os, runpy, sys

class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(json.dumps({key: os.environ.get(key) for key in names}))
            sys.exit()

sys.meta_path.insert(0, Watch())
script, names = sys.argv[1], sys.argv[2].split()
sys.argv[1:] = ["--help"]
runpy.run_path(script, run_name="__main__")
"""
# Modules that take long to import, and that only sound, Hub data sets or plots need.
NOT_FOR_PICTURES = {"torchaudio", "soundfile", "datasets", "matplotlib"}
# Imports scripts and runs them one after the other; prints whether importing them set any variable, and the
# top modules that are imported in the end.
LOADED = """
import importlib, json, os, sys

before = dict(os.environ)
import prior
runs = json.loads(sys.argv[1])
scripts = [importlib.import_module("pipelines." + name) for name, *_ in runs]
same = before == os.environ
from pipelines.run import command_line as cli

for script, words in zip(scripts, runs):
    sys.argv = words
    cli.run(script.main)
print(json.dumps([same, [name for name in sys.modules if "." not in name]]))
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


def test_importing_sets_nothing_and_pictures_do_without_what_only_others_need(
    tiny_tokenizer: Path, tiny_prior: Path, pictures: Path, tmp_path: Path
) -> None:
    encode = ("--tokenizer", tiny_tokenizer, "--data.path", pictures, "--output", tmp_path / "tokens")
    draw = ("--prior", tiny_prior, "--num", 1, "--output", tmp_path / "samples")
    runs = [[*map(str, words)] for words in (("encode_dataset", *encode), ("sample", *draw))]
    command = [sys.executable, "-c", LOADED, json.dumps(runs)]
    done = subprocess.run(command, env=unprepared(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    nothing_set, loaded = json.loads(done.stdout.splitlines()[-1])
    assert nothing_set
    assert {"torch", "PIL", "tokenizer"} <= set(loaded)
    assert not NOT_FOR_PICTURES & set(loaded)
    assert (tmp_path / "tokens").exists() and (tmp_path / "samples" / "samples.png").exists()
