"""What is installed: the constraints file, the commands that messages and texts name, and a torchaudio that
does not fit torch.

Left out: the wheel, which .ci/run installs and imports.
"""

import re
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers.required import EXTRAS, asked_for, installed_by
from tests.helpers.running import ROOT, Finished, assert_refused
from tests.helpers.warm import run_words
from tokenizer.installation import PAIRS, PIP_INSTALL, install_extra

CONSTRAINTS = ROOT / "pipelines" / "configs" / "constraints.txt"


def pinned() -> dict[str, Version]:
    """The constraints: exact versions by name."""
    found = {}
    for line in CONSTRAINTS.read_text().splitlines():
        name, version = line.split("==")
        found[canonicalize_name(name)] = Version(version)
    return found


def test_the_constraints_satisfy_the_project() -> None:
    versions = pinned()
    wrong = {str(r) for r in asked_for() if not r.specifier.contains(versions[canonicalize_name(r.name)])}
    assert not wrong


def test_every_installed_package_is_constrained() -> None:
    names = set(installed_by(asked_for()))
    assert {"torch", "numpy", "pytest", "markupsafe"} <= names  # asked for, an extra's, a dependency's
    assert names <= pinned().keys()


@pytest.mark.parametrize("pair", [("2.11.0", "2.11.0"), ("2.14.1", "2.11.1"), ("2.15.0", "2.11.1")])
def test_the_project_admits_pairs_that_work(pair: tuple[str, str]) -> None:
    known = dict(zip(("torch", "torchaudio"), map(Version, pair), strict=True))
    for requirement in asked_for():
        if requirement.name in known:
            assert requirement.specifier.contains(known[requirement.name])


def test_every_command_of_pip_installs_what_was_tested() -> None:
    """In the README, in cards, .ci/run, messages and help; but for the one that renews the constraints."""
    folders = ("tokenizer", "prior", "pipelines", "cards")
    files = [p for name in folders for p in (ROOT / name).rglob("*") if p.suffix in (".py", ".md")]
    wrong, right = [], 0
    for path in (ROOT / "README.md", ROOT / ".ci" / "run", *files):
        for line in path.read_text().splitlines():
            for command in re.findall(r"\bpip install .*", line):
                if re.match(r"pip install (-q )?-c pipelines/configs/constraints.txt", command):
                    right += 1
                elif not ("pip freeze" in line and CONSTRAINTS.name in line):
                    wrong.append(f"{path.name}: {line}")
    assert not wrong and right > 10


def test_the_readme_tells_how_to_renew_the_constraints() -> None:
    (line,) = (row for row in (ROOT / "README.md").read_text().splitlines() if "pip freeze" in row)
    extras = re.search(r"-e '\.\[([a-z,]+)\]'", line)
    assert extras is not None and set(extras[1].split(",")) == EXTRAS.keys()
    assert str(CONSTRAINTS.relative_to(ROOT)) in line


def test_hints_name_extras_that_there_are() -> None:
    sources = [p for folder in ("tokenizer", "pipelines") for p in (ROOT / folder).rglob("*.py")]
    texts = "".join(p.read_text() for p in sources)
    named = set(re.findall(r"install_extra\(['\"](\w+)['\"]\)", texts))
    assert {"bench", "metrics", "perceptual"} <= named <= EXTRAS.keys()
    assert set(re.findall(r"\.\[([a-z]+)\]'", (ROOT / "README.md").read_text())) <= EXTRAS.keys()
    assert install_extra("fast") in (ROOT / "prior" / "sampling" / "weights.py").read_text()
    assert "tokenloom[" not in texts  # the project is no package of a registry


# Goes on as in an environment that has this folder before all others, and where nothing has imported
# torchaudio.
WITH_FOLDER = """
import sys
assert "torchaudio" not in sys.modules
sys.path.insert(0, sys.argv.pop(1))
"""


@pytest.fixture
def broken_torchaudio(tmp_path: Path) -> Path:
    """A folder with a torchaudio that does not load, as one whose binary is of another torch."""
    package = tmp_path / "broken" / "torchaudio"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "try:\n    raise OSError('undefined symbol: torch_of_another_time')\n"
        "except OSError as error:\n    raise OSError('Could not load this library') from error\n"
    )
    return package.parent


def run_beside(folder: Path, code: str, *words: object) -> Finished:
    return run_words("-c", WITH_FOLDER + code, folder, *words)


def test_sound_beside_a_torchaudio_that_does_not_load_ends_in_one_sentence(
    broken_torchaudio: Path, tmp_path: Path
) -> None:
    code = "from pipelines import train_tokenizer; from pipelines.run import command_line as cli; "
    code += "cli.run(train_tokenizer.main)"
    done = run_beside(broken_torchaudio, code, "audio-small", "--output", tmp_path / "codec")
    assert_refused(done, "torch_of_another_time", PAIRS, f"{PIP_INSTALL} torch torchaudio")
    assert len(done.err.strip().splitlines()) == 1 and not (tmp_path / "codec").exists()


def test_pictures_do_without_torchaudio(broken_torchaudio: Path) -> None:
    code = (
        "import torch; from tokenizer import Tokenizer, TokenizerConfig; "
        "tok = Tokenizer(TokenizerConfig()).eval(); "
        "print(tok.decode(tok.encode(torch.zeros(1, 3, 9, 9))).shape)"
    )
    done = run_beside(broken_torchaudio, code)
    assert done.code == 0 and "[1, 3, 12, 12]" in done.out


def test_sound_that_needs_no_model_names_the_pairs_too(broken_torchaudio: Path) -> None:
    code = (
        "import numpy; from tokenizer.modalities.files.sounds import open_sound; "
        "sound = (numpy.ones(90, numpy.float32), 8000); "
        "print(open_sound(sound, 8000, 1).shape); open_sound(sound, 9000, 1)"
    )
    done = run_beside(broken_torchaudio, code)
    assert done.code == 1 and "(1, 90)" in done.out  # its own rate takes no resampling
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("ValueError: sound needs torchaudio") and PAIRS in last
