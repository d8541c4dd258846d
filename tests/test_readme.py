"""The README and the pages that go on from it: their Python blocks run in order, their commands fit the
scripts they name, and their links lead somewhere."""

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

from pipelines.presets import DECODERS, TOKENIZERS
from pipelines.quickstart import QuickstartOptions, commands
from tests.helpers.running import ROOT, Script, read_command, without_plots
from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.modalities import ModalityConfig
from tokenizer.variants import config_to_dict


def pages() -> dict[str, str]:
    """The README, then the pages in cards/, by path; without those of models, which begin with "---"."""
    paths = [ROOT / "README.md", *sorted((ROOT / "cards").glob("*.md"))]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    return {name: text for name, text in texts.items() if not text.startswith("---")}


def blocks(language: str, text: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell_commands(text: str) -> list[list[str]]:
    """All single commands of the shell blocks as words, without variables set before them."""
    found = []
    for line in "".join(blocks("sh", text)).replace("\\\n", " ").splitlines():
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
    # A bottleneck that a page adds must not be there for other tests.
    for family in (BottleneckConfig, ModalityConfig):
        monkeypatch.setattr(family, "variants", dict(family.members()))


def test_python_blocks_run(in_a_folder_with_models: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page's in a module of its own, so that a page can be read by itself."""
    ran = set()
    for page, text in pages().items():
        module = types.ModuleType("page")
        monkeypatch.setitem(sys.modules, "page", module)
        for number, block in enumerate(blocks("python", text), start=1):
            exec(compile(block, f"{page}, Python block {number}", "exec"), module.__dict__)
            ran.add(page)
    assert ran >= {"README.md", "cards/bottlenecks.md", "cards/sound.md", "cards/vae.md"}


def test_commands_fit_their_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = set()
    for page, words in ((page, words) for page, text in pages().items() for words in shell_commands(text)):
        program = Path(words[0]).name
        if program == "accelerate" and words[1] == "config":
            continue
        if program == "accelerate" or program.startswith("python"):
            if words[1:2] == ["-m"] and words[2] in ("venv", "pip", "pytest"):
                continue
            try:
                command = read_command([program, *words[1:]])
            except (ValueError, SystemExit) as error:
                pytest.fail(f"{page}: {shlex.join(words)}\n{error}")
            seen.add(command.script)
            if command.script.startswith("train_"):  # leaves what a later command resumes
                command.options.output.mkdir(parents=True, exist_ok=True)
                text = json.dumps(config_to_dict(command.options))
                (command.options.output / "run.json").write_text(text)
    scripts = {"quickstart", "train_tokenizer", "encode_dataset", "train_prior", "sample", "evaluate"}
    assert seen >= scripts | {"train_decoder", "quantize_vae", "cut_pictures", "export"}


def test_the_first_block_is_the_two_commands_that_set_up() -> None:
    first, second = blocks("sh", pages()["README.md"])[0].splitlines()
    assert first.endswith("-m pipelines.quickstart") and "venv" in first and "pip install" in first
    # .ci/run finds the second by its last word.
    assert second.endswith("pytest") and "venv" in second and "pip install" in second


def test_every_preset_is_named() -> None:
    text = pages()["README.md"]
    assert [name for name in {**TOKENIZERS, **DECODERS} if f"`{name}`" not in text] == []


def test_links_lead_to_files_and_headings_and_every_page_is_linked() -> None:
    texts = pages()
    linked = set()
    for page, text in texts.items():
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            name, _, heading = link.partition("#")
            path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
            assert path.is_file(), f"{page}: {link}"
            target = str(path.relative_to(ROOT))
            if heading:
                headings = re.findall(r"^#+ (.+)$", texts[target], re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
                assert heading in anchors, f"{page}: {link}"
            if page == "README.md":
                linked.add(target)
    assert texts.keys() <= linked | {"README.md"}
