"""page.py up to the page: command lines that are refused in a sentence, and the folder for a Space.

Left out: the page (browser/test_in_a_browser.py).
"""

import base64
import hashlib
import shutil
import socket
from pathlib import Path

import pytest

from pipelines import page
from pipelines.page import require_port
from tests.helpers.ports import held_port
from tests.helpers.running import MODEL, Script, assert_refused


def words_of(folder: Path) -> list[str]:
    """Lines of the requirements."""
    return (folder / "requirements.txt").read_text().split("\n")


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra is installed: what is refused here is refused before it is imported."""
    monkeypatch.setattr(page, "find_spec", lambda name: name)


@pytest.mark.usefixtures("extra")
def test_models_that_cannot_be_are_refused(
    script: Script,
    tiny_tokenizer: Path,
    tiny_prior: Path,
    tiny_codec: Path,
    tiny_codec_tokens: Path,
    tiny_vae: Path,
    tmp_path: Path,
) -> None:
    free = ("--port", 47999)
    five = 5 * [tmp_path]
    assert_refused(script("page", *free, "--tokenizer", *five, code=2), "at most 4")
    assert_refused(script("page", *free, "--tokenizer", tmp_path, code=2), tmp_path, "config.json")
    other = script("page", *free, "--tokenizer", tiny_codec, "--prior", tiny_prior, code=2)
    assert_refused(other, "this prior knows codes of the tokenizer with fingerprint")
    assert_refused(script("page", *free, "--tokenizer", tiny_vae, code=2), "VAE", "quantize_vae")
    tokens = script("page", *free, "--prior", tiny_prior, "--tokens", tiny_codec_tokens, code=2)
    assert_refused(tokens, tiny_codec_tokens, "--tokens")


def test_a_missing_extra_is_told_with_its_command(
    script: Script, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    refused = script("page", "--tokenizer", tiny_tokenizer, code=2)
    assert_refused(refused, "gradio", "constraints.txt -e '.[page]'")


@pytest.mark.usefixtures("extra")
def test_a_port_in_use_is_told(script: Script, tiny_tokenizer: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = script("page", "--tokenizer", tiny_tokenizer, "--port", port, code=2)
        assert_refused(refused, f"--port {port}", "choose another --port")
    refused = script("page", "--tokenizer", tiny_tokenizer, "--host", "no.such.host.invalid", code=2)
    assert_refused(refused, "--host no.such.host.invalid")
    assert_refused(script("page", "--port", 70000, code=2), "70000")
    with held_port() as free:
        require_port("127.0.0.1", free)


def test_a_folder_for_a_space(script: Script, tiny_prior: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    folder = tmp_path / "space"
    script("page", "--prior", tiny_prior, "--tokens", tiny_tokens, "--space", folder)
    assert {p.name for p in folder.iterdir()} >= {"app.py", "requirements.txt", "README.md", "Dockerfile"}
    for kind in ("tokenizer-1", "prior-1"):
        assert {p.name for p in (folder / "models" / kind).iterdir()} >= MODEL
    lines = words_of(folder)
    (wheel,) = (path.name for path in folder.glob("*.whl"))
    assert f"./{wheel}" in lines and all("==" in line for line in lines if line and line != f"./{wheel}")
    assert {line.split("==")[0] for line in lines} >= {"torch", "gradio", "pystoi", "tyro", "numpy"}
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n") and "sdk: docker" in text and text.count("\n---\n") == 1
    assert str(tmp_path) not in text + (folder / "app.py").read_text()
    target = tmp_path / "installed"
    shutil.unpack_archive(folder / wheel, target, "zip")
    assert (target / "pipelines" / "browser" / "app.py").is_file()
    assert (target / "pipelines" / "configs" / "constraints.txt").is_file()
    (record,) = target.glob("tokenloom-*.dist-info/RECORD")
    rows = [line.rsplit(",", 2) for line in record.read_text().splitlines()]
    assert {name for name, *_ in rows} == {
        path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()
    }
    for name, digest, size in rows:
        data = (target / name).read_bytes()
        expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert name == record.relative_to(target).as_posix() or (digest, size) == (
            f"sha256={expected}",
            str(len(data)),
        )
    again = script("page", "--prior", tiny_prior, "--space", folder, code=2)
    assert_refused(again, "--space", "not empty")
