"""Lengths that headers of sound cannot know: MP3 without Xing, writers to pipes, headers that count.

Left out: lengths that can be right, of files that are cut (robustness/test_broken_sounds.py).
"""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.helpers.sounds import check_sound, encoded, mp3, silent_frames, tone
from tokenizer.modalities.files import sound_files
from tokenizer.modalities.files.flac_frames import crc8, crc16
from tokenizer.modalities.files.mpeg_frames import count_samples
from tokenizer.modalities.files.sounds import Sound, open_sound

COUNT = 8000
PCM = np.round(tone(COUNT)[:, 0] * 20000).astype("<i2")
X = (PCM / 32768).astype(np.float32)[None]


def length(source: bytes | Path, rate: int = 16000) -> int:
    """Of all that is read, which is what a look at the end says too."""
    count = open_sound(source, rate, 1).shape[1]
    assert check_sound(source, rate, 1) == count
    return count


# WAV and other containers


def wav(riff: int, data: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A WAV of X whose header says `riff` and `data`."""
    fmt = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    sizes = [struct.pack("<I", n & 0xFFFFFFFF) for n in (riff, data)]
    return b"".join((b"RIFF", sizes[0], b"WAVE", fmt, before, b"data", sizes[1], PCM.tobytes(), after))


DATA, RIFF = 2 * COUNT, 2 * COUNT + 36
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT\x0e\0\0\0Lavf58.29.100\0"
WAVS = {
    "right": wav(RIFF, DATA),
    "a chunk behind": wav(RIFF + len(LIST), DATA, after=LIST),
    "a tag behind": wav(RIFF, DATA, after=b"TAG" + b"x" * 125),
    "zeros behind": wav(RIFF + 512, DATA, after=bytes(512)),
    "half a sample behind": wav(RIFF + 1, DATA + 1, after=b"\1"),
    "ffmpeg to a pipe": wav(-1, -1, before=LIST),
    "sox to a pipe": wav(0x7FFFF024, 0x7FFFF000),
    "arecord to a pipe": wav(0x80000024, 0x80000000),
    "INT_MAX": wav(0x7FFFFFFF, 0x7FFFFFFF),
    "INT_MAX less the header": wav(0x7FFFFFFF, 0x7FFFFFDB),
    "a round number": wav(2_000_000_036, 2_000_000_000),
    "1 GiB": wav(0x40000024, 0x40000000),
    "both 0": wav(0, 0),
    "data 0": wav(RIFF, 0),
    "no data yet": wav(36, 0),
    "riff 0": wav(0, DATA),
    "riff -1": wav(-1, DATA),
    "riff counts itself": wav(RIFF + 8, DATA),
    "data counts its header": wav(RIFF, DATA + 8),
    "data counts the header": wav(RIFF, DATA + 36),
    "both count the header": wav(RIFF + 8, DATA + 44),
    "data counts samples": wav(RIFF, COUNT),
}


@pytest.mark.parametrize("case", WAVS)
def test_wav_is_read_to_its_end(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(WAVS[case])
    for source in (WAVS[case], path):
        np.testing.assert_array_equal(open_sound(source, 16000, 1), X)
        assert check_sound(source, 16000, 1) == COUNT
        with Sound(source, 16000, 1) as sound:
            for start in (5000, 100, 7000):
                np.testing.assert_array_equal(sound.read(start, 900), X[:, start : start + 900])


@pytest.mark.parametrize("missing", [1, 2, 8, 36, 1000, DATA - 2])
def test_wav_that_is_cut_is_still_named(missing: int) -> None:
    for whole in (wav(RIFF, DATA), wav(RIFF + len(LIST), DATA + 0, before=LIST)):
        with pytest.raises(ValueError, match=rf"cut: .*truncated.* {DATA} bytes.* {DATA - missing};.*remove"):
            open_sound(whole[:-missing], 16000, 1, name="cut")


def test_wav_without_samples_is_still_named() -> None:
    empty = wav(0, 0)[: -len(PCM.tobytes())]
    for source in (empty, empty + LIST):
        with pytest.raises(ValueError, match=r"none: .*no samples.*remove"):
            open_sound(source, 16000, 1, name="none")


@pytest.mark.parametrize(("riff", "data"), [(0, 0), (36, 0), (RIFF, 0), (RIFF, COUNT), (-1, -1)])
def test_silence_within_is_no_end(riff: int, data: int) -> None:
    whole, silence = wav(riff, data), bytes(COUNT)
    for place in (44, 44 + COUNT // 2, 44 + COUNT - 100):
        quiet = whole[:place] + silence + whole[place + COUNT :]
        assert open_sound(quiet, 16000, 1).shape == (1, COUNT)
    assert not open_sound(wav(0, 0)[:44] + silence, 16000, 1).any()


def test_wav_that_is_too_long_for_its_header_is_named(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(wav(-1, -1))
    with path.open("r+b") as file:
        file.truncate((1 << 32) + 1000)  # takes no room: all of it is a hole
    with pytest.raises(ValueError, match=r"long\.wav: .*4 GiB.*FLAC, RF64 or W64"):
        check_sound(path, 16000, 1)


def put(data: bytes, place: int, kind: str, *values: int) -> bytes:
    new = struct.pack(kind, *values)
    return data[:place] + new + data[place + len(new) :]


def in_container(kind: str, value: int) -> bytes:
    """X in another container than WAV whose header says `value`."""
    file = BytesIO()
    names = {"au": "AU", "aiff": "AIFF", "caf": "CAF", "w64": "W64", "rf64": "RF64"}
    soundfile.write(file, PCM, 16000, format=names[kind], subtype="PCM_16")
    data = file.getvalue()
    if kind == "au":
        return put(data, 8, ">I", value & 0xFFFFFFFF)
    if kind == "aiff":
        return put(data, data.index(b"SSND") + 4, ">I", value & 0xFFFFFFFF)
    if kind == "rf64":
        return put(data, data.index(b"ds64") + 8, "<qq", value, value)
    return put(
        data, data.index(b"data") + (4 if kind == "caf" else 16), ">q" if kind == "caf" else "<q", value
    )


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("au", v) for v in (0, -1, 0x7FFFFFFF, 2_000_000_000, 24 + DATA)),
        *(("aiff", v) for v in (0, 8, -1, 0x7FFFFFFF, 2_000_000_000)),
        *(("caf", v) for v in (0, 4, -1)),
        *(("w64", v) for v in (0, 24, -1, 0x7FFFFFFFFFFFFFFF)),
        *(("rf64", v) for v in (0, -1, 0x7FFFFFFFFFFFFFFF)),
    ],
)
def test_other_containers_are_read_to_their_end(kind: str, value: int, tmp_path: Path) -> None:
    data = in_container(kind, value)
    (tmp_path / f"a.{kind}").write_bytes(data)
    for source in (data, tmp_path / f"a.{kind}"):
        np.testing.assert_array_equal(open_sound(source, 16000, 1), X)


# FLAC


def flac(total: int | None, variable: bool = False) -> bytes:
    """X in FLAC whose header says `total` samples; variable: its frames are numbered by samples."""
    data = bytearray(encoded(PCM, "flac"))
    if total is not None:
        data[21:26] = (int.from_bytes(data[21:26]) & ~((1 << 36) - 1) | total).to_bytes(5)
    return bytes(data)


@pytest.mark.parametrize("total", [0, 4096, COUNT - 1])
def test_flac_of_unknown_length_is_read_to_its_end(total: int, tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(flac(total))
    for source in (flac(total), tmp_path / "a.flac", flac(total) + b"TAG" + bytes(125)):
        np.testing.assert_array_equal(open_sound(source, 16000, 1), X)
        with Sound(source, 16000, 1) as sound:
            for start in (7000, 300, 4000):
                np.testing.assert_array_equal(sound.read(start, 900), X[:, start : start + 900])


@pytest.mark.parametrize("rate", [8000, 44100, 12345])
@pytest.mark.parametrize("count", [1, 4096, 4097, 600_000])
def test_flac_of_any_rate_and_number_of_frames(rate: int, count: int) -> None:
    data = bytearray(encoded(np.zeros(count, np.int16), "flac", rate))
    data[21:26] = (int.from_bytes(data[21:26]) & ~((1 << 36) - 1)).to_bytes(5)
    assert length(bytes(data), rate) == count


def test_flac_of_unknown_length_that_is_cut_is_named() -> None:
    for cut in (1, 20, 900):
        with pytest.raises(ValueError, match=r"cut: .*truncated.*ffmpeg -i X\.flac Y\.flac"):
            open_sound(flac(0)[:-cut], 16000, 1, name="cut")


def test_flac_and_ogg_of_several_sounds_are_named() -> None:
    one, other = (encoded(tone(n), "flac") for n in (8000, 6000))
    with pytest.raises(ValueError, match=r"two: .*truncated.*several.* 8000 .* 6000.*remove"):
        open_sound(one + other, 16000, 1, name="two")
    with pytest.raises(ValueError, match=r"two: .*remove"):
        open_sound(other + one, 16000, 1, name="two")
    for kind in ("ogg", "opus"):
        one, other = (encoded(tone(n), kind) for n in (8000, 6000))
        with pytest.raises(ValueError, match=r"two: .*several.*split.*ffmpeg -i X"):
            check_sound(one + other, 16000, 1, name="two")


def test_checksums_of_flac() -> None:
    # The check values of CRC-8/SMBUS and CRC-16/UMTS for these nine digits.
    assert crc8(b"123456789") == 0xF4 and crc16(b"123456789") == 0xFEE8


def frames(data: bytes) -> list[bytes]:
    """Frames of 16 kHz (MPEG 2, layer III) and 44.1 kHz (MPEG 1), by their own arithmetic."""
    old = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
    new = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    found = []
    while data:
        code, padding = data[2] >> 4, data[2] >> 1 & 1
        first = data[1] >> 3 & 3 == 3
        size = (144_000 * new[code] // 44100 if first else 72_000 * old[code] // 16000) + padding
        found.append(data[:size])
        data = data[size:]
    return found


def bare(data: bytes) -> bytes:
    """Without the frame of Xing."""
    first, *rest = frames(data)
    assert b"Xing" in first or b"Info" in first
    return b"".join(rest)


ID3 = b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT", "AVERAGE"])
def test_mp3_without_xing_is_read_to_its_end(mode: str, tmp_path: Path) -> None:
    with_count = mp3(mode=mode)
    data = bare(with_count)
    count = 576 * len(frames(data))
    assert count > 40_000
    (tmp_path / "a.mp3").write_bytes(data)
    for source in (data, tmp_path / "a.mp3", ID3 + data, data + b"TAG" + bytes(125), data + bytes(100)):
        assert length(source) == count
    # Xing names the delay of encoder and decoder, which is left out there.
    whole, expected = open_sound(data, 16000, 1), open_sound(with_count, 16000, 1)
    np.testing.assert_allclose(whole[:, 1105:41_105], expected, atol=1e-6)
    with Sound(tmp_path / "a.mp3", 16000, 1) as sound:
        for start in (count - 900, 20_000, 3, 30_000):
            np.testing.assert_allclose(sound.read(start, 900), whole[:, start : start + 900], atol=1e-6)
    for size in (997, 8192):
        with Sound(data, 16000, 1) as sound:
            np.testing.assert_array_equal(np.concatenate(list(sound.blocks(size)), 1), whole)


def test_mp3_of_changing_bitrates_is_not_refused() -> None:
    high, low = bare(mp3(mode="CONSTANT", seed=1)), bare(mp3())
    for data in (low + high + low, high + low + low):
        assert length(data) == 576 * len(frames(data))


def test_mp3_one_after_the_other_are_read_to_the_end() -> None:
    one = mp3()
    assert length(one) == 40_000
    assert length(one + one) == 576 * (2 * len(frames(one)) - 1)
    assert length(one + frames(one)[9] * 3) == 576 * (len(frames(one)) + 2)
    assert length(one + ID3 + one) == 576 * (2 * len(frames(one)) - 1)


def test_mp3_that_is_cut_is_named_where_its_length_is_known() -> None:
    with pytest.raises(ValueError, match=r"cut: .*truncated.* 40000 samples, only .*remove"):
        check_sound(mp3()[:-40], 16000, 1, name="cut")
    data = bare(mp3())
    assert length(data[:-10]) == 576 * (len(frames(data)) - 1)


def test_mp3_with_other_bytes_between_frames_counts_what_is_decoded() -> None:
    parts = frames(bare(mp3()))
    data = b"".join(parts[:30]) + bytes(500) + b"".join(parts[30:])
    assert 0 <= 576 * len(parts) - length(data) <= 2 * 576
    data = b"".join(parts[:30]) + b"\xff\xfb junk " * 40 + b"".join(parts[30:])
    with pytest.raises(ValueError, match=r"odd: .* 41472 samples, only 17280 .*remove"):
        open_sound(data, 16000, 1, name="odd")


def test_mp3_of_another_rate_or_channels_midway_is_named() -> None:
    for other in (mp3(channels=2), mp3(rate=44100)):
        with pytest.raises(ValueError, match=r"two: .*16000 Hz mono .* 2\.6 s.*ffmpeg -i X"):
            open_sound(bare(mp3()) + bare(other), 16000, 1, name="two")
        for between in (b"", ID3, b"TAG" + bytes(125)):
            with pytest.raises(ValueError, match=r"two: .*16000 Hz mono .* 2\.6 s.*ffmpeg -i X"):
                check_sound(mp3() + between + other, 16000, 1, name="two")


@pytest.mark.parametrize(("layer", "samples"), [(1, 384), (2, 1152), (3, 1152)])
def test_layers_of_mpeg(layer: int, samples: int) -> None:
    data = silent_frames(layer, 60)
    assert length(data, 32000) == 60 * samples
    assert length(data + b"TAG" + bytes(125), 32000) == 60 * samples


def test_xing_that_can_be_believed_is_not_counted_again() -> None:
    data = mp3()
    for source in (data, ID3 + data, data + b"TAG" + bytes(125), data[:-5000]):
        assert count_samples(BytesIO(source), len(source), "a") is None
    assert count_samples(BytesIO(bytes(9999)), 9999, "a") is None


def test_lengths_of_files_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(bare(mp3()))
    count, calls = length(path), []
    monkeypatch.setattr(sound_files, "count_samples", lambda *a: calls.append(a))
    assert check_sound(path, 16000, 1) == count and not calls
    path.write_bytes(mp3())
    assert check_sound(path, 16000, 1) == 40_000 and len(calls) == 1
