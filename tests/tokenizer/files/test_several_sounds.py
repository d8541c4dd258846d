"""Files of sound joined end to end (`cat a.wav b.wav`): named, or read whole, but never cut to the first.

Left out: MPEG frames, and FLAC and Ogg that show it at their end (test_lengths.py).
"""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.helpers.sounds import check_sound, encoded, tone
from tokenizer.modalities.files.flac_frames import crc16
from tokenizer.modalities.files.sounds import Sound, open_sound

COUNT = 8000
SUBTYPES = {"CAF": "ALAC_16", "OGG": "VORBIS", "WAVEX": "FLOAT"}
KINDS = ("WAV", "WAVEX", "RF64", "AIFF", "AU", "CAF", "W64", "FLAC", "OGG")


def sound(kind: str, count: int = COUNT, seed: int = 0) -> bytes:
    file = BytesIO()
    subtype = SUBTYPES.get(kind, "PCM_16")
    soundfile.write(file, tone(count, seed=seed), 16000, format=kind, subtype=subtype)
    return file.getvalue()


def assert_named(source: bytes | Path, message: str = "several sounds.*(keep each|split)") -> None:
    for read in (check_sound, open_sound):
        with pytest.raises(ValueError, match=f"two: .*{message}"):
            read(source, 16000, 1, name="two")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_sound_twice_is_named(kind: str, tmp_path: Path) -> None:
    one = sound(kind)
    (tmp_path / "two").write_bytes(one + one)
    for source in (one + one, tmp_path / "two"):
        assert_named(source)
    assert_named(one + one + one)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "FLAC"])  # FLAC: test_lengths.py
def test_a_longer_and_a_shorter_sound_are_named(kind: str) -> None:
    one, other = sound(kind), sound(kind, 5001, seed=1)
    assert_named(one + other)
    assert_named(other + one)


@pytest.mark.parametrize("between", [b"", b"\0", b"LIST" + struct.pack("<I", 4) + b"INFO"])
@pytest.mark.parametrize("behind", ["WAV", "FLAC", "AIFF"])
def test_a_sound_behind_a_wav_of_odd_length_and_behind_its_last_chunk(behind: str, between: bytes) -> None:
    file = BytesIO()
    soundfile.write(file, tone(COUNT + 1), 16000, format="WAV", subtype="PCM_U8")
    wav = file.getvalue()[: 44 + COUNT + 1]
    assert_named(wav + (b"\0" if between[:1] == b"L" else b"") + between + sound(behind))


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC", "CAF", "AU"])
@pytest.mark.parametrize(
    "behind",
    [bytes(1), bytes(512), b"TAG" + bytes(125), b"ID3\x04\0\0\0\0\0\x0a" + bytes(10), b"no sound RIFF"],
    ids=["a byte", "zeros", "TAG", "ID3", "words"],
)
def test_what_is_no_sound_may_follow(kind: str, behind: bytes) -> None:
    one = sound(kind)
    np.testing.assert_array_equal(open_sound(one + behind, 16000, 1), open_sound(one, 16000, 1))
    assert check_sound(one + behind, 16000, 1) == COUNT


def test_a_list_of_words_behind_a_wav_may_hold_what_begins_a_sound() -> None:
    text = sound("WAV")[:44]
    behind = b"LIST" + struct.pack("<I", len(text)) + text
    assert check_sound(sound("WAV") + behind, 16000, 1) == COUNT


def test_the_metadata_of_flac_may_hold_a_sound() -> None:
    flac, held = sound("FLAC"), b"test" + sound("FLAC", 900)
    with_sound = flac[:42] + b"\2" + len(held).to_bytes(3) + held + flac[42:]  # a block of an application
    assert flac[4] == 0 and check_sound(with_sound, 16000, 1) == COUNT
    assert_named(with_sound + with_sound)


def test_a_span_of_a_joined_file_can_be_read_where_its_end_is_not_asked_for() -> None:
    one = sound("FLAC")
    with Sound(one + one, 16000, 1) as joined, Sound(one, 16000, 1) as alone:
        np.testing.assert_array_equal(joined.read(100, 900), alone.read(100, 900))
        with pytest.raises(ValueError, match=r"sound of .*several sounds.*(keep each|split)"):
            joined.read(COUNT - 900, 900)


# FLAC within Ogg


def ogg_crc(data: bytes) -> int:
    """CRC-32 of Ogg: 0x04C11DB7, nothing reflected, from 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc >> 31 else crc << 1) & 0xFFFFFFFF
    return crc


def page(flags: int, granule: int, number: int, packet: bytes) -> bytes:
    sizes = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
    head = b"OggS\0" + struct.pack("<BqIII", flags, granule, 7, number, 0) + bytes([len(sizes)]) + sizes
    return head[:22] + struct.pack("<I", ogg_crc(head + packet)) + head[26:] + packet


def ogg_flac(total: int) -> bytes:
    """Sound of one frame of FLAC in Ogg whose header promises `total` samples."""
    flac = encoded(tone(4096), "flac")
    frame = flac[flac.index(b"\xff\xf8") :]
    assert crc16(frame) == 0
    promise = int.from_bytes(flac[21:26]) & ~((1 << 36) - 1) | total
    info = flac[8:21] + promise.to_bytes(5) + flac[26:42]
    first = page(2, 0, 0, b"\x7fFLAC\1\0\0\1fLaC\0\0\0\x22" + info)
    second = page(0, 0, 1, b"\x84\0\0\x08" + bytes(8))  # an empty comment
    return first + second + page(4, 4096, 2, frame)


@pytest.mark.parametrize("total", [0, 4096])
def test_flac_within_ogg_is_named_with_what_makes_it_flac(total: int, tmp_path: Path) -> None:
    path = tmp_path / "a.oga"
    path.write_bytes(ogg_flac(total))
    for source in (ogg_flac(total), path):
        assert_named(source, r"FLAC within Ogg.*ffmpeg -i X\.oga X\.flac")


def test_checksum_of_ogg() -> None:
    vorbis = encoded(tone(100), "ogg")
    first = vorbis[: 28 + 30]  # the page of the first header, which has 30 bytes
    assert ogg_crc(first[:22] + bytes(4) + first[26:]) == int.from_bytes(first[22:26], "little")
