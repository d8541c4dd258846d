"""Training runs that are killed at their nastiest instants, or at random ones, and resumed: they end in the
same files as those that were not, and leave no others.

Left out: how runs kill themselves (helpers/killed.py), and requests to stop (test_interruption.py).
"""

import dataclasses
import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.killed import Instant
from tests.helpers.running import ROOT, WHOLE_TOKENIZER, whole_prior
from tests.helpers.warm import run_words
from tests.helpers.whole_runs import assert_same_files

RESUME = ("--resume", "latest")
# Checkpoints after the steps 4, 8 and 12, evaluations after 5, 10 and 12, a k-means start after 6.
TOKENIZER = (*WHOLE_TOKENIZER, "--keep-checkpoints", 1, "--gradient-accumulation", 2, "--data.workers", 1)
KEEP_2 = ("--keep-checkpoints", 2)
# The files of a checkpoint beside state.json, in the order in which they are written.
STATES = ("model", "average", "optimizers", "training_state", "rng")

# Where one life of a run after the other ends, and how the life is begun.
LIVES: dict[str, list[tuple[Instant, tuple[str, ...]]]] = {
    "train_tokenizer": [
        (Instant("claim", 1, "c_return", "posix.replace"), ()),
        (Instant("checkpoint", 3, "c_return", "posix.fsync"), RESUME),
        (Instant("prune", 2, "c_return", "posix.unlink"), RESUME),
        (Instant("log cut", 1, "c_call", "posix.replace"), RESUME),
        # The last one, after which no other is written and followed by pruning.
        (Instant("checkpoint", 1, "c_return", "posix.rename"), RESUME),
        (Instant("model", 1, "call", "save_pretrained"), RESUME),
        (Instant("model", 1, "c_return", "serialize_file"), RESUME),
        (Instant("model", 2, "c_return", "posix.replace"), RESUME),
    ],
    "train_prior": [
        (Instant("evaluation", 2, "return", "evaluate_prior"), ()),
        (Instant("set aside", 1, "c_return", "posix.rename"), ("--resume", "run/checkpoints/step-4")),
        (Instant("prune", 3, "c_call", "posix.unlink"), RESUME),
        (Instant("model", 2, "c_return", "posix.replace"), RESUME),
    ],
}


@dataclass(frozen=True)
class Lives:
    """A run that was killed again and again, one that was not, and for each life of the first and then of the
    second its exit status and all files when it was over."""

    killed: Path
    whole: Path
    ends: list[tuple[int, set[str]]]


@pytest.fixture(scope="module")
def lives(tiny_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lives]:
    """Of each script, all in turn from one process, which has imported what they need."""
    top = tmp_path_factory.mktemp("kills")
    words = {"train_tokenizer": TOKENIZER, "train_prior": (*whole_prior(tiny_tokens), *KEEP_2)}
    lives = []
    for script, killed in LIVES.items():

        def add(name: str, instant: Instant | None, *more: Any, script: str = script) -> None:
            folder = top / f"{script}-{name}"
            line = [*words[script], *more, "--output", folder / "run"]
            line = [str(word).replace("run/", f"{folder}/run/") for word in line]
            fields = instant and dataclasses.asdict(instant)
            lives.append([str(folder), fields, f"pipelines/{script}.py", line])

        for instant, more in killed:
            add("killed", instant, *more)
        add("killed", None, *RESUME)
        add("whole", None)
    path = top / "lives.json"
    path.write_text(json.dumps(lives))
    script = ROOT / "tests" / "helpers" / "killed.py"
    done = run_words(script, path, variables={"OMP_NUM_THREADS": "1"})
    assert done.code == 0, done.err
    (top / "said").write_text(done.err)
    ends = iter([(code, set(files)) for code, files in json.loads(path.read_text())])
    return {
        script: Lives(
            *(top / f"{script}-{name}" / "run" for name in ("killed", "whole")),
            [next(ends) for _ in range(len(killed) + 2)],
        )
        for script, killed in LIVES.items()
    }


@pytest.mark.parametrize("script", LIVES)
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_files(
    script: str, lives: dict[str, Lives]
) -> None:
    codes = [code for code, _ in lives[script].ends]
    assert codes == [-signal.SIGKILL] * len(LIVES[script]) + [0, 0]
    # What a resume from an older checkpoint leaves stays.
    aside = ("checkpoints/step-8.left-1",) if script == "train_prior" else ()
    assert_same_files(lives[script].killed, lives[script].whole, *aside)


@pytest.mark.parametrize("script", LIVES)
def test_what_bears_the_name_of_a_checkpoint_is_whole_at_any_death(
    script: str, lives: dict[str, Lives]
) -> None:
    files = {"state.json", *(f"{f}.safetensors" for f in STATES)}
    for _, left in lives[script].ends:
        folders = {Path(name).parent for name in left if name.startswith("run/checkpoints/step-")}
        assert left >= {str(folder / name) for folder in folders for name in files}


def test_kills_strike_where_they_are_meant_to(lives: dict[str, Lives]) -> None:
    def unfinished(death: int) -> list[str]:
        """What a life left that was not whole, without the process's number."""
        _, left = lives["train_tokenizer"].ends[death]
        paths = [Path(name) for name in left if ".unfinished" in name]
        return sorted(f"{path.parts[-2].rsplit('.', 2)[0]}/{path.name}" for path in paths)

    files = [{name.removeprefix("run/") for name in left} for _, left in lives["train_tokenizer"].ends]
    assert "command.txt" in files[0] and "run.json" not in files[0]
    assert unfinished(1) == sorted(f".step-4/{name}.safetensors" for name in STATES[:3])
    assert [name.split("/")[0] for name in unfinished(2)] == [".step-4"] * 4  # of 6 files
    assert unfinished(3) == [".metrics.jsonl/metrics.jsonl"]
    assert {Path(name).parts[1] for name in files[4] if "checkpoints" in name} == {"step-8", "step-12"}
    assert "config.json" not in files[5]
    assert unfinished(6) == [".model.safetensors/model.safetensors"]
    assert "model.safetensors" in files[7] and "preprocessor_config.json" not in files[7]
