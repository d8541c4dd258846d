"""A folder that is ready to be a Space of the Hub: the page, its models, this library as a wheel, and the
exact versions that were tested.

Left out: pushing it, which `hf upload` does.
"""

import base64
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from pipelines.browser.models import Models, read_models
from prior import Prior
from tokenizer import Tokenizer
from tokenizer.hub.embedded import EMBEDDED, embedded_folder
from tokenizer.hub.files import CARD, KNOWN_FILES
from tokenizer.hub.model import UNKNOWN, license_in

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tokenizer", "prior", "pipelines")
CONSTRAINTS = ROOT / "pipelines" / "configs" / "constraints.txt"
# What the page asks for beside the library's own, and tokenizers of other libraries beside that.
OF_THE_PAGE, OF_OTHERS = ("gradio", "pystoi"), ("transformers", "diffusers")
MODELS = "models"

APP = '''"""The page of tokenloom as a Space."""

from pipelines.run.environment import prepare_environment

prepare_environment()  # before anything imports torch

import os
import sys
from pathlib import Path

from pipelines.page import main
from pipelines.run.command_line import run

os.chdir(Path(__file__).resolve().parent)  # the models are named as they lie in it
sys.argv[1:1] = {words!r}
run(main)
'''

DOCKERFILE = """FROM python:3.11-slim
RUN useradd -m -u 1000 user
USER user
ENV PATH=/home/user/.local/bin:$PATH HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /home/user/app
COPY --chown=user . .
RUN ["pip", "install", "--no-cache-dir", "-r", "requirements.txt"]
CMD ["python", "app.py"]
"""

README = """---
title: tokenloom
emoji: 🧵
colorFrom: indigo
colorTo: pink
sdk: docker
app_port: 7860
pinned: false
license: apache-2.0
short_description: See, hear and edit the codes of pictures and sound
---

# tokenloom

Pictures and sound as codes: rebuild them, change codes, draw new ones. The models:

{models}

Try it here with `python app.py --host 127.0.0.1`; put it on the Hub with
`hf upload USER/NAME . . --repo-type space`.
"""


def write_space(
    folder: Path, tokenizers: Sequence[str], priors: Sequence[str], tokens: Sequence[str]
) -> None:
    """Write the folder. Models of the Hub are named, those of this machine copied. `ValueError` for a folder
    that holds something, and for models that the page would refuse."""
    models = read_models(tokenizers, priors, tokens)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--space {folder}: is not empty; choose another folder or delete it")
    found = distribution_here()
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--host", "0.0.0.0", *_models_into(folder, models)]
    (folder / "app.py").write_text(APP.format(words=words), encoding="utf-8")
    wheel = write_wheel(folder, found)
    others = OF_OTHERS if any(entry.outline.family for entry in models.tokenizers.values()) else ()
    lines = [*pinned([*(found.requires or ()), *OF_THE_PAGE, *others]), f"./{wheel.name}"]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")
    listed = [
        f"* tokenizer {name} ({entry.kind}){_license(entry.source, Tokenizer.model_type)}"
        for name, entry in models.tokenizers.items()
    ]
    listed += [f"* prior {name}{_license(p.source, Prior.model_type)}" for name, p in models.priors.items()]
    (folder / "README.md").write_text(README.format(models="\n".join(listed)), encoding="utf-8")


def _license(source: str, model_type: str) -> str:
    """What the card of a model on this machine names as its licence, and where to read whom to credit."""
    ships = source.startswith(EMBEDDED)
    folder = embedded_folder(source, model_type) if ships else Path(source)
    named = license_in(folder / CARD) if folder.is_dir() else UNKNOWN
    credit = "; credit: pipelines/embedded/LICENSES.md in the wheel" if ships else ""
    return "" if named == UNKNOWN else f", licence {named}{credit}"


def distribution_here() -> Distribution:
    """This library as it was installed; `ValueError` if it was not."""
    try:
        return distribution("tokenloom")
    except PackageNotFoundError:
        raise ValueError("--space: tokenloom is not installed, so that nothing says what it needs") from None


def _models_into(folder: Path, models: Models) -> list[str]:
    """Copy models and tokens of this machine; returns the words of a command line that name all of them."""
    words = list[str]()
    sources = {
        "tokenizer": [entry.source for entry in models.tokenizers.values()],
        "prior": [entry.source for entry in models.priors.values()],
    }
    for kind, given in sources.items():
        words += [f"--{kind}"] if given else []
        words += [_copied(folder, source, Path(MODELS, f"{kind}-{i + 1}")) for i, source in enumerate(given)]
    if tokens := list(dict.fromkeys(prior.tokens for prior in models.priors.values() if prior.tokens)):
        words.append("--tokens")
    for i, source in enumerate(tokens):
        place = Path(MODELS, f"tokens-{i + 1}")
        shutil.copytree(source, folder / place)
        words.append(place.as_posix())
    return words


def _copied(folder: Path, source: str, place: Path) -> str:
    """The name of a model within the folder; of the Hub its own."""
    if not Path(source).is_dir():
        return source
    (folder / place).mkdir(parents=True)
    for name in KNOWN_FILES:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, folder / place / name)
    return place.as_posix()


def pinned(asked: Sequence[str]) -> list[str]:
    """The lines of the constraints for requirements and all that they ask for in turn here."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").split()
    known = {canonicalize_name(line.partition("==")[0]): line for line in lines}
    return [known[name] for name in sorted(set(_installed_by(asked))) if name in known]


def _installed_by(asked: Sequence[str]) -> Iterator[NormalizedName]:
    """Names of packages that requirements bring, those within extras that nobody asked for left out."""
    queue, seen = [Requirement(text) for text in asked], set[tuple[str, str]]()
    while queue:
        requirement = queue.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            yield name
            try:
                further = [Requirement(text) for text in requires(name) or ()]
            except PackageNotFoundError:
                continue
            for one in further:
                if one.marker is None or one.marker.evaluate({"extra": extra}):
                    one.marker = None
                    queue.append(one)


def write_wheel(folder: Path, found: Distribution) -> Path:
    """A wheel of this library as it is here. It holds no more than Python and data files, so nothing has to
    be built."""
    name, version = found.metadata["Name"], found.version
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    tag = "Wheel-Version: 1.0\nGenerator: tokenloom\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with tempfile.TemporaryDirectory() as staged:
        root = Path(staged, "wheel")
        for package in PACKAGES:
            shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
        (root / info).mkdir()
        # In a checkout what is found first may be setuptools' own folder, which has it under another name.
        told = found.read_text("METADATA") or found.read_text("PKG-INFO")
        assert told is not None
        (root / info / "METADATA").write_text(told, encoding="utf-8")
        (root / info / "WHEEL").write_text(tag)
        files = sorted(file for file in root.rglob("*") if file.is_file())
        record = [_record(file.relative_to(root).as_posix(), file.read_bytes()) for file in files]
        (root / info / "RECORD").write_text("\n".join([*record, f"{info}/RECORD,,"]) + "\n")
        archive = shutil.make_archive(str(Path(staged, "packed")), "zip", root)
        shutil.copyfile(archive, path)
    return path


def _record(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}"
