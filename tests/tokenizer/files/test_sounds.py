"""Sound of every kind becomes float arrays at one rate, in any spans, or a message that helps.

Left out: files that are broken, or change while they are read (robustness/test_broken_sounds.py).
"""

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from tests.helpers.sounds import FORMATS, check_sound, encoded, tone
from tokenizer.modalities.audio import AudioConfig
from tokenizer.modalities.files import sound_arrays
from tokenizer.modalities.files.sounds import Sound, open_sound


@pytest.fixture(autouse=True)
def nothing_noted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Each test logs as a new process does."""
    monkeypatch.setattr(sound_arrays, "_noted", set())
    caplog.set_level(logging.INFO)


# What is read


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_from_path_and_bytes(kind: str, tmp_path: Path) -> None:
    x = tone(8000)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(x, kind))
    found = open_sound(path, 16000, 1)
    assert found.shape == (1, 8000) and found.dtype == np.float32
    tolerance = 0.15 if kind in ("ogg", "opus", "mp3") else 1 / 32000
    assert np.abs(found - x.T).max() < tolerance
    np.testing.assert_allclose(open_sound(path.read_bytes(), 16000, 1), found, atol=1e-6)
    np.testing.assert_allclose(open_sound(str(path), 16000, 1), found, atol=1e-6)
    assert check_sound(path, 16000, 1) == 8000 and check_sound(path, 8000, 2) == 4000


def test_waveforms() -> None:
    x = tone(50, 2).T
    for source in (x, x.astype(np.float64), torch.from_numpy(x), torch.from_numpy(x).double()):
        np.testing.assert_array_equal(open_sound((source, 16000), 16000, 2), x)
    np.testing.assert_array_equal(open_sound((x[0], 16000), 16000, 1), x[:1])
    whole = np.array([-32768, 0, 16384], np.int16)
    np.testing.assert_array_equal(open_sound((whole, 8000), 8000, 1), [[-1, 0, 0.5]])
    np.testing.assert_array_equal(open_sound((whole.astype(np.int32) << 16, 8000), 8000, 1), [[-1, 0, 0.5]])
    found = open_sound((x, 16000), 16000, 2)
    found[:] = 9
    assert x.max() < 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((np.zeros((4000, 2)), 8000), r"shape \(4000, 2\): expected \(T,\) or \(C, T\).*transpose"),
        ((np.zeros((1, 2, 3)), 8000), r"\(1, 2, 3\): expected \(T,\) or \(C, T\).*transpose"),
        ((np.zeros((0, 8)), 8000), r"\(0, 8\): expected \(T,\) or \(C, T\).*transpose"),
        ((np.zeros(0), 8000), r"\(0,\): .*no samples.*remove"),
        ((np.zeros(3, np.uint8), 8000), "expected float in .*, got uint8"),
        ((np.zeros(3), 0), "expected a sample rate .*, got 0"),
        ((np.zeros(3), 44100.5), "expected a sample rate .*, got 44100.5"),
        ((np.zeros(3), np.nan), "expected a sample rate .*, got nan"),
        ((np.zeros(3), "44100"), "expected a sample rate .*, got '44100'"),
        ((np.zeros(3), True), "expected a sample rate .*, got True"),
        ({"array": np.zeros(3)}, "needs 'array' and 'sampling_rate', got 'array'"),
        ({"path": "a.wav", "bytes": b""}, "needs 'array' and 'sampling_rate', got 'path', 'bytes'"),
        ((np.array([0, -16384.0]), 8000), " 16384, .* 32768, .*int16"),
        ((np.array([0, 1e6]), 8000), " 1000000, .* 8388608, .*int24"),
        ((np.array([0, 1e20]), 8000), r" 1.*e\+20, .*scale"),
        ((np.array([0, np.nan]), 8000), r"\(2,\): .*NaN.*remove"),
        ((np.array([0, np.inf]), 8000), r"\(2,\): .*NaN.*remove"),
    ],
)
def test_waveforms_that_cannot_be_used(source: tuple[np.ndarray, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_sound(source, 8000, 1)


def test_other_objects_are_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"expected a path, bytes, or \(waveform .*got ndarray"):
        open_sound(np.zeros(3), 8000, 1)  # type: ignore[arg-type]


def test_waveforms_as_other_libraries_give_them() -> None:
    x = tone(50)[:, 0]
    wave = torch.from_numpy(x)
    sources = [{"array": x, "sampling_rate": 8000}, {"path": None, "array": wave, "sampling_rate": 8000.0}]
    sources += [(8000, x), (np.int64(8000), wave), (x, 8000.0), (x, np.float64(8000)), (8000.0, x)]
    for source in sources:
        np.testing.assert_array_equal(open_sound(source, 8000, 1), x[None])
        assert check_sound(source, 16000, 1) == 100


@pytest.mark.parametrize(
    "source", [None, 8000, (), (tone(9),), (8000, 8000), ("a.wav", 8000), [tone(9), 8000]]
)
def test_what_is_no_sound_is_a_type_error_that_says_what_is(source: object) -> None:
    with pytest.raises(TypeError, match=r"expected a path, bytes, or \(waveform .*sampling_rate.*, got "):
        open_sound(source, 8000, 1)  # type: ignore[arg-type]


def test_channels_are_mixed_copied_or_kept() -> None:
    x = tone(30, 8)
    np.testing.assert_allclose(open_sound(encoded(x, subtype="FLOAT"), 16000, 1), x.mean(1)[None], atol=1e-7)
    np.testing.assert_array_equal(open_sound(encoded(x[:, :2], subtype="FLOAT"), 16000, 2), x[:, :2].T)
    np.testing.assert_array_equal(open_sound(encoded(x[:, :1], subtype="FLOAT"), 16000, 2), x[:, [0, 0]].T)
    with pytest.raises(ValueError, match=r"^eight: .*8 channels.* 2; mix .*1 channel"):
        open_sound(encoded(x), 16000, 2, name="eight")


def test_conversions_are_noted_once_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        open_sound(encoded(tone(100, 2), rate=44100), 16000, 1, name="first")
        open_sound(encoded(tone(100), rate=16000), 16000, 1)
    open_sound(encoded(tone(100), rate=22050), 16000, 1, name="other")
    assert [r.getMessage() for r in caplog.records] == [
        "sound of 44100 Hz and 2 channels is brought to 16000 Hz and 1 (the first: first)",
        "sound of 22050 Hz and 1 channels is brought to 16000 Hz and 1 (the first: other)",
    ]


def test_loud_floats_are_clamped_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    loud = encoded(np.array([0.5, -3.0, 2.0]), subtype="FLOAT")
    for _ in range(2):
        np.testing.assert_array_equal(open_sound(loud, 16000, 1, name="loud"), [[0.5, -1, 1]])
    assert [r.getMessage() for r in caplog.records] == [
        "loud: holds values up to 3, which are clamped to [-1, 1]"
    ]
    assert np.abs(open_sound(loud, 48000, 1)).max() <= 1


@pytest.mark.parametrize(("scale", "bits"), [(1 << 15, 16), (1 << 23, 24), (1 << 31, 32)])
def test_floats_of_another_scale_are_named_with_their_peak(
    scale: int, bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    x = tone(70_000)[:, 0] * scale
    x[:2000], x[69_000] = 0, 0.75 * scale
    message = rf"odd: .* {0.75 * scale:.9g}, .* {scale}, .*int{bits}"
    for subtype in ("FLOAT", "DOUBLE"):
        source = encoded(x, subtype=subtype)
        for read in (open_sound, check_sound):
            with pytest.raises(ValueError, match=message.replace("+", r"\+")):
                read(source, 16000, 1, name="odd")
    assert not caplog.records


# Rates, spans and blocks


@pytest.mark.parametrize("old", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_is_torchaudios(old: int) -> None:
    for count in (1, 7, 12345):
        x = torch.from_numpy(tone(count, 2).T)
        expected = resample(x.double(), old, 16000).float().numpy()
        found = open_sound((x, old), 16000, 2)
        assert found.shape == (2, -(-count * 16000 // old))
        np.testing.assert_allclose(found, expected[:, : found.shape[1]], atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "opus", "mp3", "caf"])
def test_blocks_are_the_whole_to_the_bit(kind: str, rate: int) -> None:
    source = encoded(tone(30_001), kind)
    whole = open_sound(source, rate, 1)
    assert whole.shape == (1, -(-30_001 * rate // 16000))
    for size in (997, 8192, 10**6):
        with Sound(source, rate, 1) as sound:
            blocks = list(sound.blocks(size))
        assert all(b.shape[1] == size for b in blocks[:-1])
        np.testing.assert_array_equal(np.concatenate(blocks, 1), whole)


@pytest.mark.parametrize("rate", [11025, 16000])
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("wav", 0), ("flac", 0), ("ogg", 0), ("caf", 0), ("mp3", 1e-6), ("opus", 4e-3)]
)
def test_spans_in_any_order(kind: str, tolerance: float, rate: int) -> None:
    # Sought without a lead, one span in three of Vorbis and one in a hundred of MP3 begins wrong.
    source = encoded(tone(100_000), kind)
    whole = open_sound(source, rate, 1)
    starts = np.random.default_rng(0).integers(0, whole.shape[1] - 900, 40)
    with Sound(source, rate, 1) as sound:
        for start in (*starts.tolist(), 0, 1, whole.shape[1] - 900):
            found = sound.read(start, 900)
            np.testing.assert_allclose(found, whole[:, start : start + 900], rtol=0, atol=tolerance)
        assert sound.read(5, 0).shape == (1, 0)
        with pytest.raises(ValueError, match=r"no samples \d+ to \d+, .*\d"):
            sound.read(whole.shape[1], 1)
        with pytest.raises(ValueError, match="at least 1 sample, got 0"):
            next(sound.blocks(0))


def test_formats_that_cannot_seek() -> None:
    source = encoded(tone(5000), subtype="GSM610", rate=8000)
    whole = open_sound(source, 8000, 1)
    with Sound(source, 8000, 1) as sound:
        for start in (3000, 100, 4000):
            np.testing.assert_array_equal(sound.read(start, 50), whole[:, start : start + 50])


def test_blocks_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(3_000_000, np.int16), 48000)
    with Sound(path, 16000, 1) as sound:
        sizes = [len(sound._decoder._kept) for _ in sound.blocks(5000)]  # type: ignore[attr-defined]
    assert len(sizes) == 200 and max(sizes) < 40_000


def test_rates_without_a_common_factor_are_refused() -> None:
    with pytest.raises(ValueError, match=r" 44101 .* 16000 .* 44100"):
        open_sound(encoded(tone(10), rate=44101), 16000, 1)


@pytest.mark.parametrize("claim", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_wav_written_to_a_pipe_is_read_to_its_end(claim: int) -> None:
    whole = bytearray(encoded(tone(500)))
    place = whole.index(b"data") + 4
    whole[place : place + 4] = struct.pack("<I", claim)
    assert open_sound(bytes(whole), 16000, 1).shape == (1, 500)


def test_one_sample_and_silence() -> None:
    for kind in ("wav", "flac", "ogg", "mp3"):
        assert open_sound(encoded(tone(1), kind), 16000, 1).shape == (1, 1)
    assert open_sound(encoded(tone(1)), 44100, 2).shape == (2, 3)
    assert not open_sound(encoded(np.zeros(999)), 44100, 1).any()


# The modality


def test_preprocess_and_postprocess(tmp_path: Path) -> None:
    audio = AudioConfig(channels=2, sample_rate=8000).build()
    x = tone(800, 2)
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(x, rate=8000, subtype="FLOAT"))
    found = audio.preprocess(path)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), x.T[None])
    assert torch.equal(audio.preprocess([path, (x.T, 8000)]), torch.cat([found, found]))
    (waveform, rate), _ = audio.postprocess(torch.cat([found, found]) * 3)
    assert rate == 8000 and waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform, (x.T * 3).clip(-1, 1))
    soundfile.write(tmp_path / "b.wav", waveform.T, rate)
    with pytest.raises(ValueError, match=r"799 to 800 samples.*preprocess_batch.*encode\(x, lengths\)"):
        audio.preprocess([path, (x.T[:, 1:], 8000)])
    with pytest.raises(ValueError, match=r"preprocess .*empty list.*one source"):
        audio.preprocess([])
    with pytest.raises(ValueError, match=r"expected \(B, 2, T\), got \(2, 800\)"):
        audio.postprocess(found[0])
    config = audio.preprocessor_config()
    assert (config["sampling_rate"], config["feature_size"], config["padding_value"]) == (8000, 2, 0.0)
