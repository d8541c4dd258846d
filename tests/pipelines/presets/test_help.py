"""--help of every script: each option has its text, which flows, and the presets are named.

Left out: what the options do (pipelines/run/test_command_line.py and the scripts' own tests).
"""

import contextlib
import importlib
import io
import re
import sys

import pytest

from pipelines.presets import TOKENIZERS
from pipelines.run.command_line import parse
from pipelines.training.options import TokenizerTraining, TrainingOptions
from tests.helpers.running import ROOT
from tokenizer.losses import LOSSES


def help_of(*command: str) -> str:
    """The help of a script or benchmark, as one line without the frame that tyro draws."""
    name, *words = command
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        patch.setattr(sys, "argv", [f"pipelines/{name}.py", *words, "--help"])
        importlib.import_module(f"pipelines.{name}").main()
    return " ".join(out.getvalue().translate({ord(c): " " for c in "│╭╮╰╯─"}).split())


BENCHMARK_NAMES = [p.stem.removeprefix("benchmark_") for p in (ROOT / "pipelines").glob("benchmark_*.py")]


@pytest.mark.parametrize(
    "command",
    [
        *(("train_tokenizer",), ("train_tokenizer", "audio-small"), ("train_prior",), ("encode_dataset",)),
        *(("sample",), ("evaluate",), ("quantize_vae",), ("export",), ("cut_pictures",), ("page",)),
        ("quickstart",),
        *(("benchmark", name) for name in sorted(BENCHMARK_NAMES)),
    ],
    ids="-".join,
)
def test_every_help_is_whole(command: tuple[str, ...]) -> None:
    """tyro breaks off the docs of options that span lines, and shows a default of no values as nothing."""
    text = help_of(*command)
    assert text.startswith(f"usage: pipelines/{command[0]}.py ") and "--config FILE reads options" in text
    assert "(default: )" not in text
    # An option is followed by its kind and its text, but for the losses, which their head explains.
    bare = set(re.findall(r" --([\w.-]+) [A-Z{][^ ]* \(default", text))
    assert all(name.startswith("model.losses.") for name in bare), bare


def test_help_flows_and_names_presets_and_losses() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "400")
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
            parse(TokenizerTraining, "Train.", ["--help"], TOKENIZERS, "emoji")
    text = out.getvalue()
    assert "[PRESET] [-h] [OPTIONS]" in text.splitlines()[0] and "emoji (default): 32 × 32" in text
    for name in LOSSES:
        assert re.search(rf"\b{name}( \((pictures|sound)\))?: [a-z1]", text), name
    doc = TrainingOptions.__dataclass_fields__["skip_non_finite"].metadata["help"]
    assert doc in text and "\n" not in doc and doc.endswith("one more stops the run.")
