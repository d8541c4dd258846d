"""`Generator`: what sample.py draws, in Python, of pictures and of sound; how the pair is loaded, and what is
refused.

Left out: the script's files (scripts/test_sample.py, scripts/test_sound.py), and sampling (prior/sampling).
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from pipelines import Generator
from prior import Prior
from tests.helpers.local_hub import LocalHub
from tests.helpers.running import ROOT, Script, environment
from tokenizer import Tokenizer
from tokenizer.distributed import keyed_generator


@pytest.fixture(scope="module")
def pictures(tiny_prior: Path) -> Generator:
    return Generator.from_pretrained(tiny_prior)


@pytest.fixture(scope="module")
def sounds(tiny_codec_prior: Path) -> Generator:
    """Windows of 25 frames, half a second; 320 samples a frame."""
    return Generator.from_pretrained(tiny_codec_prior)


def array(picture: Image.Image) -> Any:
    return np.asarray(picture, dtype=np.uint8)


# What is drawn


def test_pictures_are_those_of_the_script(
    pictures: Generator, script: Script, tiny_prior: Path, tmp_path: Path
) -> None:
    options = {"temperature": 0.9, "cfg_scale": 1.5, "top_k": 9, "cfg_schedule": "linear"}
    flags = [word for k, v in options.items() for word in ("--" + k.replace("_", "-"), v)]
    words = ("--label", "flags", "--num", 5, "--seed", 3, "--batch-size", 4, *flags)
    script("sample", "--prior", tiny_prior, *words, "--output", tmp_path)
    for batch_size in (2, 64):
        drawn = pictures(label="flags", num=5, seed=3, batch_size=batch_size, **options)  # type: ignore[arg-type]
        assert [p.size for p in drawn] == 5 * [(32, 32)] and {p.mode for p in drawn} == {"RGB"}
        for i, picture in enumerate(drawn):
            with Image.open(tmp_path / f"flags-{i:04d}.png") as written:
                assert np.array_equal(array(picture), array(written))


def test_sounds_are_those_of_the_script(
    sounds: Generator, script: Script, tiny_codec_prior: Path, tmp_path: Path
) -> None:
    voice = (0.1 * np.sin(np.arange(5000) / 10)).astype(np.float32)
    soundfile.write(tmp_path / "voice.wav", voice, 16000, subtype="FLOAT")
    words = ("--prefix", tmp_path / "voice.wav", "--seconds", 1.3, "--num", 3, "--seed", 5)
    script("sample", "--prior", tiny_codec_prior, *words, "--output", tmp_path / "out")
    tok = sounds.tokenizer
    codes = tok.encode(tok.preprocess(tmp_path / "voice.wav"))
    for prefix in (tmp_path / "voice.wav", (voice, 16000), codes, codes.numpy()):
        drawn = sounds(num=3, seconds=1.3, prefix=prefix, seed=5, batch_size=2)
        assert [(w.shape, w.dtype, rate) for w, rate in drawn] == 3 * [((1, 81 * 320), np.float32, 16000)]
        for (waveform, _), path in zip(drawn, sorted((tmp_path / "out").glob("*.wav")), strict=True):
            written, rate = soundfile.read(path, dtype="float32")
            assert rate == 16000 and np.abs(waveform[0] - written).max() < 1e-4


def test_sounds_have_the_seconds_asked_for(sounds: Generator) -> None:
    assert [w.shape for w, _ in sounds(seed=0)] == [(1, 8000)]  # the window
    long = sounds(seconds=1.3, seed=0)[0][0]
    assert long.shape == (1, 65 * 320) and sounds(seconds=0.001, seed=0)[0][0].shape == (1, 320)
    (codes,) = sounds.draw(num=2, seconds=1.3, seed=0)
    assert codes.shape == (2, 6, 65) and sounds.decode(codes).shape == (2, 1, 65 * 320)
    np.testing.assert_allclose(sounds.decode(codes)[0].clamp(-1, 1), long, atol=1e-5)


def test_a_seed_decides_all_chance_and_torch_does_without(pictures: Generator) -> None:
    one, other, of_numpy = (next(iter(pictures.draw("food", 3, seed=s))) for s in (1, 2, np.int64(1)))  # type: ignore[arg-type]
    assert one.shape == (3, 1, 8, 8) and torch.equal(one, of_numpy) and not torch.equal(one, other)
    torch.manual_seed(4)
    first, second = (next(pictures.draw("food", 3)) for _ in range(2))
    torch.manual_seed(4)
    assert torch.equal(next(pictures.draw("food", 3)), first) and not torch.equal(first, second)
    number = pictures.prior.label_index("food")
    assert torch.equal(next(pictures.draw(number, 3, seed=1)), one)
    # A stream for every label, which no other label changes.
    assert torch.equal(pictures.prior.sample(3, number, generator=keyed_generator(1, number)), one)
    parts = list(pictures.draw("food", 5, seed=1, batch_size=2))
    assert [len(p) for p in parts] == [2, 2, 1] and torch.equal(torch.cat(parts)[:3], one)
    assert not torch.equal(next(pictures.draw(num=3, seed=1)), one)  # of no class


# How the pair is loaded


def test_the_pair_is_loaded(tiny_prior: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    named = Generator.from_pretrained(str(tiny_prior), tiny_tokenizer, "cpu", "int8")
    assert named.prior.prepared is not None and named.prior.prepared.weights == "int8"
    assert named.tokenizer.fingerprint() == named.prior.config.tokenizer_fingerprint
    assert not named.prior.training and not named.tokenizer.training
    loose = Generator(Prior.from_pretrained(tiny_prior), Tokenizer.from_pretrained(tiny_tokenizer))
    assert np.array_equal(array(loose(seed=1)[0]), array(Generator.from_pretrained(tiny_prior)(seed=1)[0]))
    config = dataclasses.replace(loose.prior.config, tokenizer_fingerprint="0" * 16)
    with pytest.raises(ValueError, match=r"fingerprint 0000000000000000.*use that tokenizer.*train"):
        Generator(Prior(config), loose.tokenizer)
    Prior(config).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"fingerprint 0000000000000000.*use that tokenizer.*train"):
        Generator.from_pretrained(tmp_path / "other", tiny_tokenizer)
    with pytest.raises(ValueError, match=r"prior: expected a folder or Hub id .*got ''"):
        Generator.from_pretrained("", tiny_tokenizer)
    with pytest.raises(ValueError, match=r"weights: .*'int4'; .*full, bf16, int8"):
        Generator.from_pretrained(tiny_prior, weights="int4")  # type: ignore[arg-type]


def test_the_pair_comes_from_the_hub_and_from_its_cache(
    tiny_prior: Path, tiny_tokenizer: Path, hub: LocalHub, tmp_path: Path
) -> None:
    shutil.copytree(tiny_prior, tmp_path / "prior", ignore=shutil.ignore_patterns("tokens.json"))
    config = json.loads((tmp_path / "prior" / "config.json").read_text())
    config["config"]["tokenizer_id"] = "user/tok"
    (tmp_path / "prior" / "config.json").write_text(json.dumps(config))
    Tokenizer.from_pretrained(tiny_tokenizer).push_to_hub("user/tok", token="hf_user")
    Prior.from_pretrained(tmp_path / "prior").push_to_hub("user/prior", token="hf_user")
    for missing in ("user/prior", "user/tok"):
        with pytest.raises(ValueError, match=f"{missing}: .*local_files_only.*leave"):
            Generator.from_pretrained("user/prior", local_files_only=True)
        Prior.from_pretrained("user/prior")
    whole = Generator.from_pretrained("user/prior")
    hub.take_seen()
    cached = Generator.from_pretrained("user/prior", local_files_only=True)
    assert hub.seen == []
    assert np.array_equal(array(whole("flags", seed=1)[0]), array(cached("flags", seed=1)[0]))
    with pytest.raises(ValueError, match=r"device: 'gpu' .*take cpu"):
        Generator.from_pretrained("user/prior", device="gpu")
    assert hub.seen == []


def test_importing_it_brings_no_scripts(tmp_path: Path) -> None:
    code = (
        "import pipelines, sys; assert 'torch' not in sys.modules\n"
        "from pipelines import Generator\n"
        "print(sorted({'datasets', 'matplotlib', 'torchaudio', 'pipelines.sample'} & set(sys.modules)))\n"
        "try:\n    pipelines.Samples\nexcept AttributeError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["[]", "module 'pipelines' has no attribute 'Samples'"], done.stderr
    assert str(ROOT) in environment()["PYTHONPATH"]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "cheese"}, "label: .*'cheese'; .*food"),
        ({"label": 9}, "label: expected -1 .* to 8, got 9"),
        ({"num": 0}, "num: expected 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"seconds": 2.0}, "seconds and prefix .*sound.*pictures"),
        ({"prefix": "voice.wav"}, "seconds and prefix .*sound.*pictures"),
        ({"temperature": -1.0}, "temperature: expected 0 .*got -1"),
        ({"cfg_scale": 2.0}, "cfg_scale=2.0 .*label.*cfg_scale=1"),
    ],
)
def test_options_that_do_not_fit_pictures_are_refused(
    pictures: Generator, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pictures(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds: expected above 0, got 0"),
        ({"seconds": float("inf")}, "seconds: expected above 0, got inf"),
        ({"seconds": float("nan")}, "seconds: expected above 0, got nan"),
        ({"prefix": "nowhere.wav"}, r"nowhere\.wav: .*path"),
        ({"prefix": torch.zeros(2, 6, 3, dtype=torch.int64)}, "prefix: expected one sound, .* got 2"),
        ({"prefix": torch.full((1, 6, 3), 16)}, "codes .* 16 to 16.* 0 to 15"),
    ],
)
def test_options_that_do_not_fit_sound_are_refused(
    sounds: Generator, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sounds.draw(**options)  # told before anything is drawn
