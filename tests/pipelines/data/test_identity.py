"""A run knows its data again wherever they lie, and refuses others.

Left out: tokens, whose fingerprint and encoding a prior's run compares (pipelines/tokens/test_resume.py).
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.pictures_on_disk import load, write
from tests.helpers.running import TINY_TOKENIZER, Script, assert_refused, read, without_plots

WORDS = ("emoji", *TINY_TOKENIZER, "--batch-size", 4, "--model.bottleneck.kmeans-steps", 1)


@pytest.fixture
def plotless() -> Iterator[None]:
    with without_plots():
        yield


@pytest.fixture
def run(script: Script, tmp_path: Path, plotless: None) -> tuple[Path, Path]:
    """Pictures, and a run of two steps on them."""
    data = write(tmp_path / "zoo", [f"{c}/{i}.png" for c in ("a", "b") for i in range(6)])
    output = tmp_path / "run"
    script("train_tokenizer", *WORDS, "--max-steps", 2, "--data.path", data, "--output", output)
    return data, output


def resume(script: Script, output: Path, *words: object, code: int = 0) -> str:
    resumed = script(
        "train_tokenizer", "--resume", "latest", "--max-steps", 4, "--output", output, *words, code=code
    )
    if code:
        assert_refused(resumed)
    return resumed.err


def test_the_same_data_may_lie_anywhere(script: Script, run: tuple[Path, Path], tmp_path: Path) -> None:
    data, output = run
    moved, copied = tmp_path / "elsewhere" / "zoo", tmp_path / "copied"
    shutil.copytree(output, copied)
    shutil.copytree(data, moved)
    shutil.rmtree(data)
    assert "no such file or folder" in resume(script, copied, code=2)
    resume(script, copied, "--data.path", moved)
    assert read(copied / "run.json")["data"]["path"] == str(moved)
    assert read(copied / "data.json") == read(output / "data.json")


@pytest.mark.parametrize("change", ["added", "content", "renamed", "label"])
def test_other_data_are_refused(change: str, script: Script, run: tuple[Path, Path]) -> None:
    data, output = run
    said = "files were changed, renamed or labelled otherwise"
    if change == "added":
        shutil.copyfile(data / "a/0.png", data / "a/new.png")
        said = "train 1"  # so many, and now one more
    elif change == "content":
        shutil.copyfile(data / "a/0.png", data / "a/1.png")
    elif change == "renamed":
        (data / "a/0.png").rename(data / "a/00.png")
    else:
        (data / "a").rename(data / "c")
        said = "class names ['a', 'b'], now ['b', 'c']"
    err = resume(script, output, code=2)
    assert "began with other data" in err and said in err and "--output" in err


def test_runs_of_older_releases_say_that_nothing_is_compared(script: Script, run: tuple[Path, Path]) -> None:
    data, output = run
    (output / "data.json").unlink()
    elsewhere = data.with_name("moved")
    shutil.copytree(data, elsewhere)
    assert "--data.path is" in resume(script, output, "--data.path", elsewhere, code=2)
    assert "nothing compares them" in resume(script, output)
    assert read(output / "data.json")["train"] + read(output / "data.json")["held_out"] == 12


def test_the_digest_is_of_contents_names_and_labels(tmp_path: Path) -> None:
    root = write(tmp_path / "one", ["a/1.png", "b/2.png"])
    first = load(root, valid_fraction=0).digest()
    assert load(shutil.copytree(root, tmp_path / "two"), valid_fraction=0).digest() == first
    assert load(root, valid_fraction=0, cache_bytes=0).digest() == first
    assert load(root, valid_fraction=0, label_column="none").digest() != first
    labelled = []
    for one, other in ("cat", "dog"), ("dog", "cat"):  # the same files, names and classes
        (root / "metadata.csv").write_text(f"file_name,label\na/1.png,{one}\nb/2.png,{other}\n")
        labelled.append(load(root, valid_fraction=0))
    assert labelled[0].class_names == labelled[1].class_names == ("cat", "dog")
    assert labelled[0].digest() != labelled[1].digest()
    (root / "metadata.csv").unlink()
    (root / "a/1.png").rename(root / "a/3.png")
    assert load(root, valid_fraction=0).digest() != first
    assert json.loads(json.dumps(load(root).record())) == load(root).record()
