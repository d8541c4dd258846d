"""Imports: which package may know which, names that would shadow another module, and a light `import`.

Left out: what the modules do.
"""

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.helpers.required import asked_for, installed_by

ROOT = Path(__file__).parents[1]
PACKAGES = ("tokenizer", "prior", "pipelines")
# Importing package → modules of other packages that it may import ("x" stands for x and all in it).
ALLOWED = {"tokenizer": (), "prior": ("tokenizer.hub",), "pipelines": ("tokenizer", "prior")}
# Room of pipelines → rooms that it may import; none imports a script but the benchmarks, which time steps.
ROOMS = {
    "run": (),
    "data": ("run",),
    "tokens": ("data", "run"),
    "training": ("data", "run"),
    "presets": ("data", "run", "training"),
    "evaluation": ("data", "run", "tokens"),
    "graphs": (),
    "reports": ("data", "evaluation", "run", "tokens"),
    "browser": ("reports", "run", "tokens"),
    "benchmarks": ("data", "evaluation", "presets", "reports", "run", "tokens", "training"),
}


def imported_modules(source: str) -> Iterator[str]:
    """Every module that `source` imports, anywhere in it; `from a import b` counts as `a.b`, a relative
    import keeps its dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def inside(module: str, parents: Iterable[str]) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def forbidden(package: str, source: str) -> list[str]:
    """Imports in a module of `package` that no arrow allows."""
    others = (*(p for p in PACKAGES if p != package), "tests")
    allowed = ALLOWED[package]
    return [
        m
        for m in imported_modules(source)
        if m.startswith(".") or (inside(m, others) and not inside(m, allowed))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) >= 5
    wrong = {str(f.relative_to(ROOT)): found for f in files if (found := forbidden(package, f.read_text()))}
    assert not wrong


def test_the_check_of_arrows_sees_every_kind_of_import() -> None:
    assert forbidden("tokenizer", "import prior") == ["prior"]
    assert forbidden("tokenizer", "def f():\n    from pipelines.data import x") == ["pipelines.data.x"]
    assert forbidden("tokenizer", "from . import config") == ["..config"]
    assert forbidden("tokenizer", "import tokenizer.hub, torch") == []
    assert forbidden("prior", "from tokenizer import hub, Tokenizer") == ["tokenizer.Tokenizer"]
    assert forbidden("prior", "from tokenizer.hub.model import HubModel\nimport tokenizer.hub") == []
    assert forbidden("prior", "from tokenizer.hubs import x") == ["tokenizer.hubs.x"]
    assert forbidden("prior", "import pipelines.data as d") == ["pipelines.data"]
    assert forbidden("pipelines", "from prior import Prior\nimport tokenizer.search") == []
    assert forbidden("pipelines", "from tests.helpers.tiny import x") == ["tests.helpers.tiny.x"]


def modules_of(package: str) -> dict[str, Path]:
    """The package's modules by name; a package's own is its __init__.py."""
    found = {}
    for file in (ROOT / package).rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def known_in(name: str, modules: Iterable[str]) -> str:
    """The module of `modules` that an imported name is, or is in; "" for none."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def test_rooms_are_entered_one_way() -> None:
    modules = modules_of("pipelines")
    scripts = {name for name, file in modules.items() if file.parent == ROOT / "pipelines"} - {"pipelines"}
    assert set(ROOMS) == {name.split(".")[1] for name in set(modules) - scripts - {"pipelines"}}
    wrong = []
    for name, file in modules.items():
        if name in scripts or name == "pipelines":
            continue
        room = name.split(".")[1]
        for imported in {known_in(m, modules) for m in imported_modules(file.read_text())} - {
            "",
            "pipelines",
        }:
            other = imported.split(".")[1]
            allowed = room == "benchmarks" if imported in scripts else other in (room, *ROOMS[room])
            wrong += [] if allowed else [f"{name} imports {imported}"]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for type checking included, and those within functions."""
    modules = {name: file for package in PACKAGES for name, file in modules_of(package).items()}
    after = {
        name: {known_in(m, modules) for m in imported_modules(file.read_text())} - {"", name}
        for name, file in modules.items()
    }
    assert len(after) > 150 and "tokenizer.network" in after["tokenizer.streaming"]
    while free := {name for name, needed in after.items() if not needed & after.keys()}:
        after = {name: needed for name, needed in after.items() if name not in free}
    assert not after


def test_rooms_are_few_and_shallow() -> None:
    """A folder is a room: its name says what it knows; one for a single file, or deep down, says little."""
    files = [
        f.relative_to(ROOT) for p in PACKAGES for f in (ROOT / p).rglob("*.py") if f.name != "__init__.py"
    ]
    rooms = Counter(file.parent for file in files)
    assert len(rooms) <= 31 and min(rooms.values()) >= 2 and max(len(room.parts) for room in rooms) <= 3


def test_no_script_shadows_another_module() -> None:
    """`python pipelines/x.py` puts pipelines/ first on the path: its names hide all others."""
    known = set(installed_by(asked_for()))
    assert {"torch", "torchvision", "filelock"} <= known  # asked for, by an extra, by a dependency
    taken = {
        module
        for module, distributions in packages_distributions().items()
        if any(d.lower().replace("_", "-") in known for d in distributions)
    }
    assert {"torch", "PIL", "datasets", "tqdm", "yaml"} <= taken
    taken |= set(sys.stdlib_module_names) | set(PACKAGES) | {"tests"}
    scripts = {p.stem for p in (ROOT / "pipelines").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert {"train_tokenizer", "data"} <= scripts
    assert not scripts & taken


@pytest.mark.parametrize("package", ["tokenizer", "prior"])
def test_importing_a_library_is_light(package: str, tmp_path: Path) -> None:
    code = f"import {package}, json, sys; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == "" and result.stdout.count("\n") == 1
    loaded = set(json.loads(result.stdout))
    assert "torch" in loaded and package in loaded
    heavy = {
        "accelerate",
        "datasets",
        "matplotlib",
        "torchvision",
        "torchmetrics",
        "pyarrow",
        "pandas",
        "tyro",
        "torchaudio",
        "soundfile",
    }
    assert not loaded & heavy
    assert "pipelines" not in loaded and (package == "prior" or "prior" not in loaded)
    assert list(tmp_path.iterdir()) == []
