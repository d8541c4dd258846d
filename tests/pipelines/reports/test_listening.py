"""The listening page needs no other file, and holds the clips that it was given.

Left out: sound that it refuses (test_spectrograms.py).
"""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from pipelines.reports.listening import listening_page
from tests.helpers.speech import RATE, speech
from tests.pipelines.reports.test_spectrograms import tone


class Page(HTMLParser):
    """Tags with their attributes, and all text outside of <style>; every tag must be closed in its turn."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1] != "style":
            self.text.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_listening_page_is_whole_in_one_file(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script> & "quotes"'
    rows = [(evil, {"original": speech(0, 0.5), evil: tone(300, 0.3)}), ("sample", {"": tone(500, 0.2)})]
    metrics = {"si_sdr": 7.123, "bitrate": 1500.0, "pesq": None, "other_thing": 12.0}
    listening_page(rows, RATE, tmp_path / "a" / "page.html", evil, notes=["First.", evil], metrics=metrics)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["page.html"]
    source = (tmp_path / "a" / "page.html").read_text(encoding="utf-8")
    assert source.startswith("<!DOCTYPE html>")
    page = Page(source)
    assert page.all("html") == [{"lang": "en"}] and {"charset": "utf-8"} in page.all("meta")
    assert page.all("script") == page.all("link") == [] and page.text.count(evil) == 4
    for _, attributes in page.tags:
        assert attributes.keys() <= {
            *("lang", "charset", "name", "content", "scope", "class", "id", "aria-labelledby"),
            *("controls", "preload", "aria-label", "src", "alt"),
        }
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "url(" not in source and "@import" not in source

    clips = [x for _, clips in rows for x in clips.values()]
    players, pictures = page.all("audio"), page.all("img")
    assert len(players) == len(pictures) == len(clips)
    for player, picture, x in zip(players, pictures, clips, strict=True):
        assert "controls" in player
        samples, rate = soundfile.read(io.BytesIO(decoded(player["src"], "audio/wav")))
        assert rate == RATE and np.abs(samples - x[0].numpy()).max() < 1e-4
        with Image.open(io.BytesIO(decoded(picture["src"], "image/png"))) as opened:
            assert opened.format == "PNG" and opened.width > 400
    assert [picture["alt"] for picture in pictures] == [
        f"Spectrogram of {evil}, original",
        f"Spectrogram of {evil}, {evil}",
        "Spectrogram of sample",
    ]
    assert players[2]["aria-label"] == "sample"
    assert [s["aria-labelledby"] for s in page.all("section")] == [h["id"] for h in page.all("h2")]

    at = page.text.index("SI-SDR")
    assert page.text[at - 4 : at] == ["metric", "value", "unit", "better"]
    assert page.text[at : at + 10] == [
        *("SI-SDR", "7.12", "dB", "higher", "bitrate", "1.500", "kbit/s"),
        *("PESQ", "–", "1 to 4.6"),
    ]
    assert page.text[at + 11 : at + 13] == ["other thing", "12"]
    assert "0.50 s" in page.text[page.text.index("original, 0.50 s")]


def decoded(source: str | None, kind: str) -> bytes:
    assert source is not None
    start, _, data = source.partition(",")
    assert start == f"data:{kind};base64"
    return base64.b64decode(data, validate=True)


def test_a_page_without_metrics_has_no_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        listening_page([("x", {"": tone(300, 0.1)})], RATE, tmp_path / f"{name}.html", "Samples")
    a, b = ((tmp_path / f"{name}.html").read_bytes() for name in ("a", "b"))
    assert a == b and b"<table" not in a and b"<p>" not in a
