"""The page's server asked without a browser: what it does not give away or fetch, its memory, and a folder
for a Space that runs by itself.

Left out: what people do (test_in_a_browser.py).
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.running import ROOT, Script, noise
from tests.helpers.served import Served, served

# Memory that all requests after the first may take.
GROWTH = 50 << 20


def get(url: str) -> tuple[int, bytes]:
    """Status and content."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return int(response.status), response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def upload(page: Served, path: Path) -> str:
    """Where the server put a file."""
    boundary = "boundary-of-the-parts"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{page.url}/gradio_api/upload", body, kind)
    with urllib.request.urlopen(request, timeout=60) as response:
        (place,) = json.load(response)
    return str(place)


def call(page: Served, name: str, *values: Any) -> tuple[str, Any]:
    """How a request to one of the page's functions ended, "complete" or "error", and what it gave."""
    request = urllib.request.Request(
        f"{page.url}/gradio_api/call/{name}",
        json.dumps({"data": values}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        event = json.load(response)["event_id"]
    _, stream = get(f"{page.url}/gradio_api/call/{name}/{event}")
    *_, (kind, data) = re.findall(r"event: (\w+)\ndata: (.*)\n", stream.decode())
    return kind, json.loads(data)


def file(path: str) -> dict[str, Any]:
    """A file as a function of the page takes it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def rebuild(page: Served, path: str) -> tuple[str, Any]:
    """A picture rebuilt."""
    _, config = get(f"{page.url}/config")
    parts = {part["props"].get("elem_id"): part["props"] for part in json.loads(config)["components"]}
    (name, _) = parts["rebuild-picture-tokenizer"]["choices"][0]
    return call(page, "rebuild_picture", file(path), name, "as in training", 1, 1)


@pytest.mark.browser
def test_no_file_beyond_its_own_is_given(page_served: Served, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    Image.fromarray(noise(0, 20, 20, 3)).save(mine)
    place = upload(page_served, mine)
    assert get(f"{page_served.url}/gradio_api/file={place}") == (200, mine.read_bytes())
    secret = page_served.folder.parent / "secret.png"
    shutil.copyfile(mine, secret)
    asked = [
        str(secret),
        "/etc/passwd",
        str(ROOT / "pyproject.toml"),
        str(ROOT / "cards" / "emoji-prior.png"),
    ]
    asked += [f"{Path(place).parent}/../../../secret.png", "../../etc/passwd", "%2Fetc%2Fpasswd"]
    for path in asked:
        status, content = get(f"{page_served.url}/gradio_api/file={path}")
        assert status in (403, 404) and secret.read_bytes() not in content, path
    assert rebuild(page_served, place)[0] == "complete"
    for path in (str(secret), str(ROOT / "cards" / "emoji-prior.png"), "/etc/passwd"):
        assert rebuild(page_served, path)[0] == "error", path


@pytest.mark.browser
def test_addresses_are_not_fetched(page_served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(2)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/it.png"
        assert rebuild(page_served, address)[0] == "error"
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.browser
def test_the_page_names_no_other_server_to_ask(page_served: Served) -> None:
    for path in ("", "theme.css", "config"):
        _, content = get(f"{page_served.url}/{path}")
        text = content.decode()
        loaded = re.findall(r"(?:src|href)=[\"'](https?://[^\"']+)|url\([\"']?(https?://[^)\"']+)", text)
        assert loaded == [], path
        assert "fonts.googleapis" not in text and "fonts.gstatic" not in text, path
    _, config = get(f"{page_served.url}/config")
    assert json.loads(config)["analytics_enabled"] is False


@pytest.mark.slow
def test_memory_stays_after_many_requests(page_served: Served, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(noise(0, 64, 64, 3)).save(picture)
    after: dict[int, int] = {}
    for count in range(1, 201):
        kind, _ = rebuild(page_served, upload(page_served, picture))
        assert kind == "complete"
        after[count] = page_served.memory()
    assert after[200] - after[20] < GROWTH, (
        f"{after[20] >> 20} MiB after 20, {after[200] >> 20} MiB after 200"
    )


@pytest.mark.slow
def test_a_folder_for_a_space_runs_by_itself(script: Script, tiny_prior: Path, tmp_path: Path) -> None:
    """With the library from the folder's own wheel, and nothing else of this project."""
    made, folder = tmp_path / "made", tmp_path / "moved"
    script("page", "--prior", tiny_prior, "--space", made)
    made.rename(folder)
    (wheel,) = folder.glob("*.whl")
    installed = tmp_path / "installed"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(installed),
    ]
    subprocess.run([*pip, str(wheel)], check=True, timeout=300)
    command = (folder / "app.py", "--host", "127.0.0.1")
    with served(command, tmp_path, PYTHONPATH=str(installed), HF_HUB_OFFLINE="1") as page:
        maps = Path(f"/proc/{page.process.pid}/cwd")
        assert os.path.realpath(maps) == str(folder)
        picture = tmp_path / "picture.png"
        Image.fromarray(noise(0, 64, 64, 3)).save(picture)
        kind, found = rebuild(page, upload(page, picture))
        assert kind == "complete" and "PSNR" in json.dumps(found)
        kind, found = call(page, "draw_image", "models/prior-1", "flags", 3, 1, 1, 1, 1, 0, 0)
        assert kind == "complete" and "3 of 3 drawn" in json.dumps(found)
