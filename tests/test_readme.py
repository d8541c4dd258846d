"""The README: its Python blocks run in order, and its commands fit the scripts they name."""

import json
import re
import shlex
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipelines.presets import TOKENIZERS
from pipelines.quickstart import QuickstartOptions, commands
from pipelines.run.command_line import options_to_dict
from tests.helpers.running import ROOT, Script, read_command, without_plots
from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.modalities import ModalityConfig


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language in README.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell_commands() -> list[list[str]]:
    """All single commands of the shell blocks as words, without variables set before them."""
    found = []
    for line in "".join(blocks("sh")).replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";&|"):
                found += [command] if command else []
                command = []
            elif command or not re.match(r"\w+=", word):
                command.append(word)
    return found


@pytest.fixture
def in_a_folder_with_models(
    script: Script, tiny_codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A working directory with what the quickstart leaves behind, after a few steps on
    few digits, and a picture."""
    options = QuickstartOptions(output=tmp_path / "runs" / "quickstart", tokenizer_steps=2, prior_steps=2)
    limit = ("--data.limit", 64)
    for (_, words), more in zip(commands(options)[:3], (limit, limit, ()), strict=True):
        name = next(word for word in words if word.startswith("pipelines."))
        with without_plots():
            script(name.removeprefix("pipelines."), *words[words.index(name) + 1 :], *more)
    shutil.copytree(tiny_codec, tmp_path / "runs" / "quickstart-audio" / "tokenizer")
    soundfile.write(tmp_path / "voice.wav", 0.1 * np.sin(np.arange(20000) / 10), 16000)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    # A bottleneck that the README adds must not be there for other tests.
    for family in (BottleneckConfig, ModalityConfig):
        monkeypatch.setattr(family, "variants", dict(family.members()))


def test_python_blocks_run(in_a_folder_with_models: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    found = blocks("python")
    assert found
    for number, block in enumerate(found, start=1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), module.__dict__)


def test_commands_fit_their_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = set()
    for words in shell_commands():
        program = Path(words[0]).name
        if program == "accelerate" and words[1] == "config":
            continue
        if program == "accelerate" or program.startswith("python"):
            if words[1:2] == ["-m"] and words[2] in ("venv", "pip", "pytest"):
                continue
            try:
                command = read_command([program, *words[1:]])
            except (ValueError, SystemExit) as error:
                pytest.fail(f"README.md: {shlex.join(words)}\n{error}")
            seen.add(command.script)
            if command.script.startswith("train_"):  # leaves what a later command resumes
                command.options.output.mkdir(parents=True, exist_ok=True)
                text = json.dumps(options_to_dict(command.options))
                (command.options.output / "run.json").write_text(text)
    scripts = {"quickstart", "train_tokenizer", "encode_dataset", "train_prior", "sample", "evaluate"}
    assert seen >= scripts


def test_the_first_block_is_the_two_commands_that_set_up() -> None:
    first, second = blocks("sh")[0].splitlines()
    assert first.endswith("-m pipelines.quickstart") and "venv" in first and "pip install" in first
    # .ci/run finds the second by its last word.
    assert second.endswith("pytest") and "venv" in second and "pip install" in second


def test_every_preset_is_named() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in TOKENIZERS if f"`{name}`" not in text] == []
