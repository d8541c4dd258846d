"""Nothing in the packages runs what stands in a file: no pickle, no eval, no code of others, no archives.

Left out: what files of models, tokens and data do when they are read (test_fuzz_*.py,
tokenizer/hub/test_round_trip.py).
"""

import ast
from collections.abc import Iterator

import pytest

from tests.test_imports import PACKAGES, ROOT, imported_modules, inside

# Modules that make objects or files out of bytes: pickles, marshalled code, archives.
MODULES = (
    *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"),
    *("zipfile", "tarfile", "zipimport", "py7zr", "rarfile", "runpy", "code", "codeop", "yaml"),
)
BUILTINS = ("eval", "exec", "compile", "__import__", "input", "execfile")
# What is called on a module or an object. torch.load is allowed with weights_only=True, which makes tensors
# only, numpy.load nowhere.
METHODS = {
    *("os.system", "os.popen", "shutil.unpack_archive", "numpy.load", "np.load", "torch.jit.load"),
    *("torch.package.PackageImporter", "torch.hub.load", "subprocess.getoutput", "pd.read_pickle"),
}
WORDS = ("trust_remote_code", "allow_pickle", "shell")


def calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def dangers(source: str) -> list[str]:
    """What in a module's source could run code that stands in a file."""
    found = [m for m in imported_modules(source) if inside(m, MODULES)]
    for call in calls(source):
        name = ast.unparse(call.func)
        words = {k.arg: k.value for k in call.keywords}
        if name in BUILTINS or name in METHODS or name.split(".")[-1] in ("extractall", "read_pickle"):
            found.append(name)
        safe = words.get("weights_only")
        if name == "torch.load" and not (isinstance(safe, ast.Constant) and safe.value is True):
            found.append(name)
        found += [
            word
            for word in WORDS
            if word in words and not (isinstance(words[word], ast.Constant) and not words[word].value)
        ]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_runs_what_it_reads(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) >= 5
    wrong = {str(f.relative_to(ROOT)): found for f in files if (found := dangers(f.read_text()))}
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "def f():\n    import zipfile", "import tarfile as t"),
        *("eval(text)", "exec(text, {})", "compile(text, 'a', 'exec')", "__import__(name)"),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)"),
        *("load_dataset(name, trust_remote_code=True)", "f(trust_remote_code=flag)", "os.system(x)"),
        *("np.load(path)", "np.load(path, allow_pickle=True)", "archive.extractall(folder)"),
        *("subprocess.run(x, shell=True)", "shutil.unpack_archive(x)", "pd.read_pickle(x)"),
    ],
)
def test_the_check_sees_what_would_run_code(source: str) -> None:
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        *("model.eval()", "torch.load(path, weights_only=True)", "re.compile('a')", "net.compile()"),
        *("f(trust_remote_code=False)", "torch.compile(step)", "subprocess.run(words)", "import json"),
    ],
)
def test_the_check_lets_other_things_be(source: str) -> None:
    assert dangers(source) == []


def test_files_of_packages_are_python_and_data() -> None:
    """Nothing that Python or torch would load as code or as a pickle lies in the packages."""
    suffixes = {p.suffix for name in PACKAGES for p in (ROOT / name).rglob("*") if p.is_file()}
    data = {".json", ".md", ".parquet", ".png", ".safetensors", ".txt", ".typed", ".wav", ".yaml"}
    assert suffixes - {".pyc"} <= {".py", *data}
