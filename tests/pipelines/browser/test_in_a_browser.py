"""The page in Chromium, as people use it: rebuild, edit, draw, compare, at two widths, and mistakes told in a
sentence. Whatever a test does, nothing is asked of other servers and nothing goes wrong in the console.

Left out: what is computed (test_edits.py and the others beside this file), and requests without a browser
(test_requests.py).
"""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.torch import load_file

from tests.helpers.running import noise
from tests.helpers.served import Served
from tests.helpers.sounds import tone
from tests.pipelines.browser.conftest import PHONE, Visit

pytestmark = pytest.mark.browser

Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("given") / "picture.png"
    Image.fromarray(noise(3, 48, 40, 3)).save(path)
    return path


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds."""
    path = tmp_path_factory.mktemp("given") / "voice.wav"
    soundfile.write(path, tone(160_000), 16000)
    return path


def test_a_picture_is_rebuilt_and_a_code_shows_its_patch(visit: Open, picture: Path, tmp_path: Path) -> None:
    one = visit()
    one.open("Rebuild", "Pictures")
    one.upload("rebuild-picture", picture)
    one.new("rebuild-picture-rebuilt")
    assert "PSNR" in one.says("rebuild-picture-measures", "bits of the codes")
    one.cell("rebuild-picture-grid", 2, 5, 8, 8)
    assert "row 6, column 3" in one.says("rebuild-picture-note", "Code")
    one.new("rebuild-picture-patch")
    codes = load_file(one.download("rebuild-picture-files", "codes.safetensors", tmp_path))["codes"]
    assert codes.shape == (1, 1, 8, 8)
    with Image.open(one.download("rebuild-picture-files", "rebuilt.png", tmp_path)) as rebuilt:
        assert rebuilt.size == (32, 32)


def test_a_replaced_code_changes_the_picture_and_can_be_taken_back(visit: Open, picture: Path) -> None:
    one = visit()
    one.open("Edit", "Pictures")
    one.upload("edit-image-given", picture)
    first = one.new("edit-image-result")
    one.cell("edit-image-grid", 0, 0, 8, 8)
    one.says("edit-image-note", "1 chosen")
    one.page.fill("#edit-image-code input", "31")
    one.page.click("#edit-image-replace")
    second = one.new("edit-image-result", first)
    assert pixels(one, first) != pixels(one, second)
    one.page.click("#edit-image-nearest")
    third = one.new("edit-image-result", second)
    one.page.click("#edit-image-undo")
    one.new("edit-image-result", third)
    one.page.fill("#edit-image-code input", "512")
    one.page.click("#edit-image-replace")
    one.told("from 0 to 511, got 512")


def pixels(one: Visit, address: str) -> bytes:
    """A picture of the page."""
    return bytes(one.page.request.get(address).body())


def test_a_hole_is_filled_and_a_proposal_taken(visit: Open, picture: Path) -> None:
    one = visit()
    one.open("Edit", "Pictures")
    one.upload("edit-image-given", picture)
    first = one.new("edit-image-result")
    paint(one)
    one.page.click("#edit-image-fill")
    assert re.search(r"for [1-9]\d* codes", one.says("edit-image-note", "4 of 4 proposals"))
    one.page.locator("#edit-image-proposals .thumbnail-item").nth(1).click()
    second = one.new("edit-image-result", first)
    assert pixels(one, first) != pixels(one, second)
    one.upload("edit-image-other", picture)  # the same: what was drawn is put back
    paint(one)
    one.page.click("#edit-image-move")
    one.says("edit-image-note", ", 0 of them changed")


def paint(one: Visit) -> None:
    """Paint over the middle of the picture."""
    canvas = one.page.locator("#edit-image-brush canvas").first
    canvas.scroll_into_view_if_needed()
    one.page.wait_for_timeout(700)  # the picture comes in by itself
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    one.page.mouse.move(x - 30, y)
    one.page.mouse.down()
    for step in range(1, 4):
        one.page.mouse.move(x - 30 + 20 * step, y + 4 * (step % 2))
    one.page.mouse.up()
    one.page.wait_for_timeout(300)


def test_a_class_is_drawn_on_a_sheet_beside_its_neighbours(visit: Open, tmp_path: Path) -> None:
    one = visit()
    one.open("Draw", "Pictures")
    one.page.click("#draw-image-class input")
    one.page.get_by_role("option", name="flags").click()
    one.page.click("#draw-image-start")
    assert "nearest" in one.says("draw-image-note", "16 of 16 drawn")
    assert one.page.locator("#draw-image-sheet .thumbnail-item").count() == 16
    codes = load_file(one.download("draw-image-files", "codes.safetensors", tmp_path))["codes"]
    assert codes.shape == (16, 1, 8, 8)
    with Image.open(one.download("draw-image-files", "sheet.png", tmp_path)) as sheet:
        assert sheet.width > 4 * 96


def test_a_drawing_is_stopped(visit: Open) -> None:
    one = visit()
    one.open("Draw", "Pictures")
    one.page.fill("#draw-image-number input[type=number]", "64")
    one.page.click("#draw-image-start")
    one.says("draw-image-note", " of 64 drawn")
    one.page.click("#draw-image-stop")
    text = one.says("draw-image-note", "Stopped")
    assert int(re.findall(r"(\d+) of 64", text)[0]) < 64


def test_sound_is_rebuilt_and_comes_back_at_its_length(visit: Open, voice: Path, tmp_path: Path) -> None:
    one = visit()
    one.open("Rebuild", "Sound")
    one.upload("rebuild-sound", voice)
    one.new("rebuild-sound-seen-again")
    assert "kbit/s" in one.says("rebuild-sound-measures", "STOI")
    samples, rate = soundfile.read(one.download("rebuild-sound-files", "rebuilt.wav", tmp_path))
    assert (len(samples), rate) == (160_000, 16000)
    one.cell("rebuild-sound-grid", 3, 0, 24, 4)
    one.says("rebuild-sound-note", "0.06 s")
    one.says("rebuild-sound-moment", "0:00")


def test_seconds_of_a_sound_are_filled(visit: Open, voice: Path) -> None:
    one = visit()
    one.open("Edit", "Sound")
    one.upload("edit-audio-given", voice)
    first = one.new("edit-audio-seen")
    one.page.fill("#edit-audio-first input", "1")
    one.page.fill("#edit-audio-last input", "1.5")
    one.page.keyboard.press("Tab")
    one.page.click("#edit-audio-fill")
    one.says("edit-audio-note", "4 of 4 proposals")
    one.page.locator("#edit-audio-proposals .thumbnail-item").first.click()
    one.new("edit-audio-seen", first)
    assert ", 0 of them" not in one.says("edit-audio-note", "of them changed")


def test_sound_is_drawn_and_heard(visit: Open, tmp_path: Path) -> None:
    one = visit()
    one.open("Draw", "Sound")
    one.page.click("#draw-audio-start")
    assert "nearest" in one.says("draw-audio-note", "4 of 4 drawn")
    samples, _ = soundfile.read(one.download("draw-audio-files", "sample-1.wav", tmp_path))
    assert len(samples) == 32000
    one.page.locator("#draw-audio-sheet .thumbnail-item").first.click()
    one.says("draw-audio-player", "0:02")


def test_one_table_compares_tokenizers(visit: Open, picture: Path) -> None:
    one = visit()
    one.open("Compare", "Pictures")
    one.upload("compare-picture", picture)
    one.page.wait_for_selector("#compare-picture img")
    one.page.click("#compare-picture-start")
    assert "PSNR" in one.says("compare-picture-table", "bits of the file")


def test_two_people_do_not_disturb_each_other(visit: Open, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (32, 32), (250, 20, 20)).save(other)
    people = [(visit(), picture), (visit(), other)]
    for one, path in people:
        one.open("Edit", "Pictures")
        one.upload("edit-image-given", path)
        one.new("edit-image-result")
    first, second = (one for one, _ in people)
    first.cell("edit-image-grid", 1, 1, 8, 8)
    first.says("edit-image-note", "1 chosen")
    second.cell("edit-image-grid", 2, 2, 8, 8)
    second.says("edit-image-note", "1 chosen")
    second.cell("edit-image-grid", 3, 3, 8, 8)
    second.says("edit-image-note", "2 chosen")
    before = second.shown("edit-image-result")
    first.page.fill("#edit-image-code input", "5")
    first.page.click("#edit-image-replace")
    first.says("edit-image-note", "1 chosen")
    second.page.click("#edit-image-replace")
    assert "2 chosen" in second.says("edit-image-note", "of them changed")
    assert pixels(second, second.new("edit-image-result", before)) != pixels(
        first, first.shown("edit-image-result")
    )


def test_mistakes_are_told_in_a_sentence(visit: Open, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    data = io.BytesIO()
    Image.new("1", (10000, 5000)).save(data, "png")
    (tmp_path / "huge.png").write_bytes(data.getvalue())
    soundfile.write(tmp_path / "long.flac", np.zeros(8000 * 600, np.int16), 8000)
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    one = visit()
    one.open("Rebuild", "Pictures")
    one.page.click("#rebuild-picture-start")
    one.told("no picture yet")
    for name, words in (("text.png", "text.png"), ("huge.png", "pixels")):
        one.upload("rebuild-picture", tmp_path / name)
        one.told(words)
        one.page.locator(
            "#rebuild-picture [aria-label='Clear'], #rebuild-picture [aria-label='Remove Image']"
        ).click()
    one.open("Edit", "Pictures")
    one.page.click("#edit-image-replace")
    one.told("nothing to edit yet")
    one.open("Rebuild", "Sound")
    one.upload("rebuild-sound", tmp_path / "long.flac")
    one.told("at most 60 s")
    one.page.locator("#rebuild-sound [aria-label='Clear']").click()
    one.upload("rebuild-sound", tmp_path / "silence.wav")
    assert "silent" in one.says("rebuild-sound-measures", "STOI")


def test_on_a_phone_nothing_is_wider_than_the_screen(visit: Open, picture: Path) -> None:
    one = visit(PHONE)
    one.open("Rebuild", "Pictures")
    one.upload("rebuild-picture", picture)
    one.new("rebuild-picture-rebuilt")
    for tab in ("Rebuild", "Edit", "Draw", "Compare"):
        one.open(tab)
        wide = one.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= PHONE[0], (tab, wide)


def test_every_click_brings_a_new_result(
    visit: Open, page_served: Served, picture: Path, voice: Path
) -> None:
    """From the click to the result being seen; `pytest -m browser -rP` shows the figures."""
    one = visit()
    one.open("Rebuild", "Pictures")
    one.upload("rebuild-picture", picture)
    one.new("rebuild-picture-rebuilt")
    picture_seconds = best_of(6, one, "rebuild-picture")
    one.open("Sound")
    one.upload("rebuild-sound", voice)
    one.new("rebuild-sound-seen-again")
    sound_seconds = best_of(3, one, "rebuild-sound")
    print(f"picture {picture_seconds:.3f} s, sound {sound_seconds:.2f} s, page {page_served.passed:.1f} s")


def best_of(tries: int, one: Visit, part: str) -> float:
    """Seconds from a click on Rebuild to a new result, the fewest."""
    result = f"{part}-rebuilt" if part == "rebuild-picture" else f"{part}-seen-again"
    script = """([start, result, before]) => new Promise(done => {
        const began = performance.now();
        const look = () => {
            const now = document.querySelector(result + " img");
            const there = now && now.getAttribute("src") !== before && now.complete;
            if (there) done(performance.now() - began);
            else requestAnimationFrame(look);
        };
        document.querySelector(start).click();
        look();
    })"""
    taken = []
    for _ in range(tries):
        before = one.shown(result)
        taken.append(one.page.evaluate(script, [f"#{part}-start", f"#{result}", before]) / 1000)
    return float(min(taken))
