"""Bad input to the scripts: each is named on stderr with what mends it, before training, and nothing is lost.

Left out: single wrong flags (pipelines/run/test_command_line.py) and broken checkpoints
(robustness/test_broken_checkpoints.py).
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.tokens.items import read_tokens
from tests.helpers.running import MODEL, TINY_PRIOR, TINY_TOKENIZER, Script, assert_refused, noise, read

# Pictures


def spoil(folder: Path) -> set[str]:
    """Add what cannot be read, and return its names."""
    whole = (folder / "rgb-0.png").read_bytes()
    (folder / "bad-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bad-text.png").write_text("not a picture")
    (folder / "bad-empty.jpg").touch()
    Image.fromarray(noise(20, 300, 300, 3)).save(folder / "bad-huge.png")
    return {p.name for p in folder.glob("bad-*")}


def train_on(folder: Path, *words: object) -> tuple[object, ...]:
    return ("emoji", *TINY_TOKENIZER, "--max-steps", 2, "--data.path", folder, *words)


def test_bad_pictures_in_a_folder_are_skipped_and_counted(
    script: Script,
    no_plots: None,
    pictures: Path,
    tiny_tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    bad = spoil(pictures)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80_000)
    words = train_on(pictures, "--data.limit", 99, "--output", tmp_path / "run")
    finished = script("train_tokenizer", *words)
    assert "skipped 4 of 16 pictures:\n" in finished.err
    assert any(name in finished.err for name in bad)
    assert "Trained on 1" in (tmp_path / "run" / "README.md").read_text()
    words = ("--tokenizer", tiny_tokenizer, "--data.path", pictures, "--output", tmp_path / "tokens")
    finished = script("encode_dataset", *words)
    assert "skipped 4 of 16 pictures:\n" in finished.err
    splits = read_tokens(tmp_path / "tokens")[1]
    assert len(splits["train"]) + len(splits["held_out"]) == 12 and len(splits["held_out"]) >= 1


def make_missing(folder: Path) -> Path:
    return folder / "missing"


def make_empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def make_texts(folder: Path) -> Path:
    (folder / "texts").mkdir()
    (folder / "texts" / "notes.txt").write_text("no picture")
    return folder / "texts"


def make_unreadable(folder: Path) -> Path:
    (folder / "unreadable").mkdir()
    (folder / "unreadable" / "lie.png").write_text("no picture")
    return folder / "unreadable"


def make_file(folder: Path) -> Path:
    Image.fromarray(noise(0, 8, 8, 3)).save(folder / "single.png")
    return folder / "single.png"


def make_sound(folder: Path) -> Path:
    (folder / "sound").mkdir()
    (folder / "sound" / "a.wav").touch()
    return folder / "sound"


def make_broken_parquet(folder: Path) -> Path:
    (folder / "broken.parquet").write_bytes(b"PAR1 and no more")
    return folder / "broken.parquet"


BAD_DATA: list[tuple[Callable[[Path], Path], tuple[str, ...]]] = [
    (make_missing, ("user/name", "--data.path")),
    (make_empty, ("no pictures", "--data.path")),
    (make_texts, ("no pictures", "notes.txt", "--data.path")),
    (make_unreadable, ("lie.png", "1 of 1", "PNG")),
    (make_file, ("one file", "give its folder")),
    (make_sound, ("1 sound files", "expected pictures", "train_tokenizer.py", "--data.path")),
    (make_broken_parquet, ("Parquet magic bytes",)),
]


@pytest.mark.parametrize("name", ["train_tokenizer", "encode_dataset", "evaluate"])
@pytest.mark.parametrize(("make", "named"), BAD_DATA)
def test_data_that_cannot_be_used_are_named(
    make: Callable[[Path], Path],
    named: tuple[str, ...],
    name: str,
    script: Script,
    tiny_tokenizer: Path,
    tmp_path: Path,
) -> None:
    path, out = make(tmp_path), tmp_path / "out"
    model = ("emoji", *TINY_TOKENIZER) if name == "train_tokenizer" else ("--tokenizer", tiny_tokenizer)
    finished = script(name, *model, "--data.path", path, "--output", out, code=2)
    # A folder in which nothing can be read is known by its files.
    assert_refused(finished, *named, *(() if make is make_unreadable else (path,)))
    assert not out.exists()


@pytest.mark.parametrize("path", ["embedded:flowers", "embedded:speech"])
def test_embedded_data_that_do_not_fit_are_named(path: str, script: Script, tmp_path: Path) -> None:
    words = (*TINY_TOKENIZER, "--data.path", path, "--output", tmp_path / "out")
    assert_refused(script("train_tokenizer", "emoji", *words, code=2), path)


# Broken models and tokens


def model_with(tiny: Path, folder: Path, name: str, content: bytes | None) -> Path:
    """A copy of a saved model with one file replaced, or removed (None)."""
    folder.mkdir()
    for file in MODEL:
        shutil.copy(tiny / file, folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    return folder


BROKEN_MODELS: list[tuple[str, Callable[[bytes], bytes | None], str]] = [
    ("model.safetensors", lambda whole: whole[:-40], "download it again"),
    ("model.safetensors", lambda whole: b"\xff" * 100, "download it again"),
    ("model.safetensors", lambda whole: b"", "download it again"),
    ("model.safetensors", lambda whole: None, "download it again"),
    ("config.json", lambda whole: whole[:-40], "JSON"),
    ("config.json", lambda whole: None, "no config.json"),
    ("config.json", lambda whole: whole.replace(b'"codebook_size": 32', b'"codebook_size": 33'), "shape"),
    ("config.json", lambda whole: whole.replace(b'"codebook_size"', b'"codebook_sizes"'), "'codebook_sizes'"),
]


@pytest.mark.parametrize(("file", "change", "named"), BROKEN_MODELS)
def test_a_broken_model_is_named(
    file: str,
    change: Callable[[bytes], bytes | None],
    named: str,
    script: Script,
    tiny_tokenizer: Path,
    tmp_path: Path,
) -> None:
    changed = change((tiny_tokenizer / file).read_bytes())
    folder = model_with(tiny_tokenizer, tmp_path / "model", file, changed)
    words = ("--tokenizer", folder, "--output", tmp_path / "out")
    assert_refused(script("encode_dataset", *words, code=2), folder, named)
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_finished_is_no_model(script: Script, tiny_tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_tokenizer, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    words = ("--tokenizer", tmp_path / "run", "--output", tmp_path / "out")
    finished = script("encode_dataset", *words, code=2)
    assert_refused(finished, f"{tmp_path}/run: ", "--resume")


def test_models_of_the_wrong_kind_are_named(
    script: Script, tiny_tokenizer: Path, tiny_prior: Path, tmp_path: Path
) -> None:
    out = ("--output", tmp_path / "out")
    finished = script("encode_dataset", "--tokenizer", tiny_prior, *out, code=2)
    assert_refused(finished, tiny_prior / "config.json", "tokenloom-prior", "another model")
    finished = script("sample", "--prior", tiny_tokenizer, *out, code=2)
    assert_refused(finished, tiny_tokenizer / "config.json", "tokenloom-tokenizer", "another model")
    finished = script("evaluate", "--tokenizer", tmp_path / "gone", *out, code=2)
    assert_refused(finished, tmp_path / "gone", "user/name")


def test_codes_out_of_range_are_refused_before_training(
    script: Script, tiny_tokens: Path, tmp_path: Path
) -> None:
    tokens, out = tmp_path / "tokens", tmp_path / "prior"
    shutil.copytree(tiny_tokens, tokens)
    info = read(tokens / "tokens.json")
    (tokens / "tokens.json").write_text(json.dumps({**info, "codebook_size": 7}))
    finished = script("train_prior", "small", *TINY_PRIOR, "--tokens", tokens, "--output", out, code=2)
    assert_refused(finished, tokens, " 7 entries", "encode_dataset.py")
    assert not out.exists()


def test_tokens_that_are_not_there_are_named(script: Script, tmp_path: Path) -> None:
    words = ("--tokens", tmp_path / "none", "--output", tmp_path / "prior")
    finished = script("train_prior", "small", *TINY_PRIOR, *words, code=2)
    assert_refused(finished, tmp_path / "none", "encode_dataset.py")


# Outputs


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("name", ["train_tokenizer", "encode_dataset", "train_prior", "sample", "evaluate"])
def test_an_output_that_cannot_be_a_folder_is_named(
    name: str, place: str, script: Script, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    limit = ("--data.limit", 8)
    words: dict[str, Callable[[], tuple[Any, ...]]] = {
        "train_tokenizer": lambda: ("emoji", *TINY_TOKENIZER),
        "encode_dataset": lambda: ("--tokenizer", request.getfixturevalue("tiny_tokenizer"), *limit),
        "train_prior": lambda: ("small", *TINY_PRIOR, "--tokens", request.getfixturevalue("tiny_tokens")),
        "sample": lambda: ("--prior", request.getfixturevalue("tiny_prior"), "--num", 1),
        "evaluate": lambda: ("--tokenizer", request.getfixturevalue("tiny_tokenizer"), *limit),
    }
    finished = script(name, *words[name](), "--output", tmp_path / place, code=2)
    assert_refused(finished, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_could_not_start_leaves_its_folder_free(
    script: Script, no_plots: None, tiny_tokens: Path, tmp_path: Path
) -> None:
    words = ("small", *TINY_PRIOR, "--tokens", tiny_tokens, "--max-steps", 1, "--output", tmp_path / "prior")
    assert_refused(script("train_prior", *words, "--model.dim", 25, code=2), "dim", "25")
    script("train_prior", *words)
    words = ("emoji", *TINY_TOKENIZER, "--max-steps", 1, "--output", tmp_path / "tok")
    finished = script("train_tokenizer", *words, "--perceptual", "torchvision:nonsense", code=2)
    assert_refused(finished, "torchvision:nonsense", "vgg16")
    script("train_tokenizer", *words)


def test_a_diverged_run_says_so(script: Script, no_plots: None, tmp_path: Path) -> None:
    words = ("--max-steps", 20, "--learning-rate", 1e15, "--clip-norm", 0, "--warmup-steps", 0)
    words += ("--optimizer", "adamw", "--output", tmp_path)
    finished = script("train_tokenizer", "emoji", *TINY_TOKENIZER, *words, code=2)
    assert_refused(finished, "step ", "lower --learning-rate")
    assert not (tmp_path / "model.safetensors").exists()
