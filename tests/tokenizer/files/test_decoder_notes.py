"""Notes of the decoder of MPEG name their file, once; what others write to stderr goes through, unchanged.

Left out: sound that is refused (robustness/test_broken_sounds.py).
"""

import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.running import ROOT, environment
from tests.helpers.sounds import check_sound, mp3
from tokenizer.modalities.files import decoder_notes
from tokenizer.modalities.files.decoder_notes import notes_named
from tokenizer.modalities.files.sounds import Sound, open_sound

NOTE = b"[src/libmpg123/layer3.c:INT123_do_layer3():1774] error: part2_3_length (1) too large\n"


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_notes, "_told", set())


def torn(first: int = 6000) -> bytes:
    """An MP3 with bytes between its frames that are none."""
    whole = mp3()
    return whole[:first] + bytes(500) + whole[first:]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


def test_notes_name_their_file_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.mp3", "b.mp3"):
        (tmp_path / name).write_bytes(torn())
        for _ in range(3):
            assert open_sound(tmp_path / name, 16000, 1, name=name).shape == (1, 40_000)
    found = lines(caplog)
    for name in ("a.mp3", "b.mp3"):
        says = f"{name}: the decoder of MPEG says: "
        assert [line for line in found if "Illegal" in line and name in line] == [
            f"{says}Note: Illegal Audio-MPEG-Header 0x00000000 at offset 6120."
        ]
        assert f"{says}Note: Skipped 500 bytes in input." in found
    assert len(set(found)) == len(found)
    assert capfd.readouterr().err == ""


def test_a_tag_that_is_broken_is_named(caplog: pytest.LogCaptureFixture) -> None:
    tag = b"ID3\x03\0\0\0\0\0\x40TIT2\xff\xff\xff\xff\0\0\x01ab" + bytes(51)
    check_sound(tag + mp3(), 16000, 1, name="tag.mp3")
    assert lines(caplog)[0].startswith("tag.mp3: the decoder of MPEG says: ") and "ID3v2" in lines(caplog)[0]


def test_a_jump_in_a_file_that_is_sound_is_nothing_to_be_told_of(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with Sound(mp3(), 16000, 1) as sound:
        for start in (39_000, 3, 20_000, 35_000):
            sound.read(start, 900)
    assert lines(caplog) == [] and capfd.readouterr().err == ""


def test_files_decoded_side_by_side_are_all_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{i}.mp3" for i in range(12)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(torn() if i % 2 else mp3())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: open_sound(tmp_path / name, 16000, 1, name=name), names))
    told = " ".join(line for line in lines(caplog) if "Illegal" in line)
    assert all(name in told for name in names[1::2])


def test_a_note_that_may_be_of_two_files_names_both(caplog: pytest.LogCaptureFixture) -> None:
    with notes_named("a"):
        os.write(2, NOTE)
        with notes_named("b"):
            os.write(2, NOTE.replace(b"large", b"small"))
        with notes_named("c", wanted=False):
            os.write(2, b"[src/libmpg123/of a or c]\n")
        os.write(2, b"Note: Trying to resync...\n")
    assert sorted(line.split(": the")[0] for line in lines(caplog)) == ["a", "a", "a or b"]


def test_what_others_write_goes_through(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def other() -> None:
        for i in range(500):
            os.write(2, b"line %d\n" % i)

    thread = threading.Thread(target=other)
    sys.stderr.write("before, without an end; ")
    with notes_named("a"):
        os.write(2, NOTE)
    os.write(2, b"after\n")
    thread.start()
    for _ in range(200):
        with notes_named("a"):
            os.write(2, NOTE)
    thread.join()
    with pytest.raises(KeyError), notes_named("a"):
        os.write(2, b"no end " + b"\xff")
        raise KeyError
    os.write(2, b" after")
    first, *found, last = capfd.readouterr().err.splitlines()
    assert first == "before, without an end; after" and last == "no end � after"
    # Each is there once. What is written while a context ends may overtake what was written just before.
    assert sorted(found) == sorted(f"line {i}" for i in range(500))
    assert len(lines(caplog)) == 1


def test_the_room_of_notes_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    text = b"x" * 99_999 + b"\n"
    for _ in range(30):
        with notes_named("a"):
            os.write(2, text)
        assert decoder_notes._stderr.done < 1_200_000
    assert capfd.readouterr().err == text.decode() * 30


def test_descriptors_are_given_back() -> None:
    with notes_named("a"):
        pass
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with notes_named("a"), notes_named("b"):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
    assert decoder_notes._stderr.calls == []


# In a process of its own: descriptor 2 is closed, or the process forks within a call.
ALONE = """
import logging, os, sys
from tokenizer.modalities.files.decoder_notes import notes_named

if sys.argv[1] == "closed":
    os.close(2)
    with notes_named("a"):
        print("read", flush=True)
else:
    with notes_named("a"):
        if (child := os.fork()) == 0:
            os.write(2, b"of the child\\n")
            with notes_named("b"):
                os.write(2, b"Note: Trying to resync...\\n")
            os._exit(0)
        os.waitpid(child, 0)
    print("read", flush=True)
"""


@pytest.mark.parametrize(
    ("case", "err"),
    [("closed", ""), ("fork", "of the child\nb: the decoder of MPEG says: Note: Trying to resync...\n")],
)
def test_descriptor_2_is_closed_and_a_fork_within(case: str, err: str) -> None:
    command = [sys.executable, "-c", ALONE, case]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", err)
