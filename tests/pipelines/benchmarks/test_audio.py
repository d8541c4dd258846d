"""The benchmarks: timing in turns, ratios, command lines, and what `audio` writes, on tiny models.

Left out: how fast anything is, and EnCodec itself where transformers is not installed.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from pipelines.benchmarks.audio import speed as benchmark_audio
from pipelines.benchmarks.audio.codecs import encodec, load_tokenizer, ours
from pipelines.benchmarks.audio.memory import chunks, encoding_memory, peak_of_encoding
from pipelines.benchmarks.audio.speed import AudioBenchmark, compare
from pipelines.benchmarks.registry import BENCHMARKS, Spread, in_turns, machine, print_table, ratios, spread
from tests.helpers.running import assert_refused, environment, read, run_script
from tests.helpers.tiny import codec, tokenizer
from tokenizer.installation import install_extra

CPU = torch.device("cpu")
WORDS = ("audio", "--device", "cpu", "--seconds", 0.1, "--turns", 3, "--warm-up", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny codec of 16 kHz, 2 codebooks of 24 entries, 60 samples per frame."""
    path = tmp_path_factory.mktemp("codec")
    codec().save_pretrained(path)
    return path


@pytest.fixture
def tiny_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another of our models in EnCodec's place."""
    peer = ours(codec(seed=1, sample_rate=24000, widths=(4, 8, 8)), "peer", CPU)
    monkeypatch.setattr(benchmark_audio, "encodec", lambda device: peer)


def test_jobs_take_turns_from_both_ends() -> None:
    calls: list[str] = []
    jobs = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = in_turns(jobs, turns=3, warm_up=1, synchronize=lambda: calls.append("|"))
    assert "".join(calls).replace("|", "") == "cba" + "abc" + "cba" + "abc"
    assert calls[:3] == ["|", "c", "|"]  # waits before and after each
    assert list(seconds) == ["a", "b", "c"] and all(len(s) == 3 and min(s) >= 0 for s in seconds.values())


def test_ratios_are_of_each_turn() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert ratios([2.0, 8.0, 3.0], [1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 4.0)
    assert ratios([2.0, 8.0], [1.0, 2.0], scale=0.5) == Spread(1.5, 1.0, 2.0)
    assert str(Spread(0.51234, 0.5, 12.0)) == "0.5123 (0.5..12)"
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])


def test_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Title", [("", "a"), ("longer", 1), ("x", "yy")])
    assert capsys.readouterr().out == "Title\n          a\n  longer  1\n  x       yy\n\n"


def test_a_benchmark_tells_where_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/benchmark.py", "audio", "--preset", "a b"])
    where = machine(CPU, "numpy", "no-such-package")
    assert where["command"] == "python pipelines/benchmark.py audio --preset 'a b'"
    assert where["device"].startswith("cpu: ") and where["threads"] == torch.get_num_threads()
    assert where["versions"].keys() == {"tokenloom", "python", "torch", "numpy", "no-such-package"}
    assert where["versions"]["torch"] == torch.__version__.split("+")[0]
    assert where["versions"]["no-such-package"] == "not installed"


def test_ratios_are_per_second_of_sound_and_per_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, peer = ours(codec(), "mine", CPU), ours(codec(seed=1, widths=(4, 8, 8)), "peer", CPU)
    seconds = {"ours encode": [1.0, 2.0], "ours decode": [1.0, 1.0]}
    seconds |= {"peer encode": [2.0, 2.0], "peer decode": [4.0, 2.0]}
    monkeypatch.setattr(benchmark_audio, "in_turns", lambda *_: seconds)
    result = compare(mine, peer, AudioBenchmark(seconds=0.5, batch_size=4), CPU)
    factors = result["real_time_factor"]  # of 2 seconds of sound
    assert factors["encode"] == {"ours": Spread(1.5, 1.0, 2.0), "peer": Spread(1.0, 1.0, 1.0)}
    assert factors["both"]["ours"] == spread([2 / 2, 2 / 3])
    assert result["time_ratio"]["encode"] == Spread(0.75, 0.5, 1.0)
    assert result["time_ratio"]["both"] == spread([2 / 6, 3 / 4])
    scale = peer.decoder_parameters / mine.decoder_parameters
    assert 0 < scale < 1
    assert result["time_per_parameter_ratio"]["decode"] == spread([scale * 1 / 4, scale * 1 / 2])
    assert mine.parameters("both") == mine.encoder_parameters + mine.decoder_parameters


def test_parameters_are_those_of_the_networks() -> None:
    tok = codec()
    mine = ours(tok, "mine", CPU)
    assert mine.encoder_parameters == sum(p.numel() for p in tok.encoder.parameters())
    assert mine.decoder_parameters == sum(p.numel() for p in tok.decoder.parameters())
    assert mine.kbits_per_second == pytest.approx(16000 / 60 * 2 * tok.bits_per_code / 1000)


def test_the_script_prints_and_writes(folder: Path, tmp_path: Path, tiny_peer: None) -> None:
    done = run_script("benchmark", *WORDS, "--tokenizer", folder, "--output", tmp_path / "out")
    values = read(tmp_path / "out" / "benchmark-audio.json")
    assert (values["benchmark"], values["turns"], values["seconds"]) == ("audio", 3, 0.1)
    assert values["ours"]["name"] == str(folder) and values["peer"]["sample_rate"] == 24000
    assert values["versions"].keys() == {"tokenloom", "python", "torch", "transformers"}
    for name in ("real_time_factor", "time_ratio", "time_per_parameter_ratio"):
        assert values[name].keys() == {"encode", "decode", "both"}
    for value in (*values["time_ratio"].values(), values["real_time_factor"]["both"]["peer"]):
        assert 0 < value["low"] <= value["median"] <= value["high"]
    assert "memory" not in values
    for part in (str(folder), values["device"], values["command"], "Seconds of sound per second", "torch "):
        assert part in done.out
    assert f"{values['ours']['encoder_parameters'] / 1e6:.2f} M parameters" in done.out


def test_memory_is_measured_in_processes_of_their_own(
    folder: Path, tmp_path: Path, tiny_peer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    words = (*WORDS, "--tokenizer", folder, "--output", tmp_path, "--memory", "--memory-seconds", 20)
    done = run_script("benchmark", *words)
    memory = read(tmp_path / "benchmark-audio.json")["memory"]
    samples, frames = 20 * 16000, -(-20 * 16000 // 60)
    assert memory.keys() == {"encode", "encode_stream"}
    assert [m["frames"] for m in memory.values()] == [frames, frames]
    assert [m["waveform_mib"] for m in memory.values()] == [samples * 4 / 2**20, 0]
    assert all(m["codes_mib"] == 2 * 8 * frames / 2**20 for m in memory.values())
    assert all(0 <= m["additional_mib"] < 500 and m["before_mib"] > 50 for m in memory.values())
    assert "Encoding 20 s" in done.out and "encode_stream" in done.out


def test_both_ways_encode_all_of_the_sound(folder: Path) -> None:
    for way in ("encode", "encode_stream"):
        assert peak_of_encoding("", str(folder), 2.01, way)["frames"] == -(-32160 // 60)
    assert [c.shape[2] for c in chunks(load_tokenizer("", str(folder)), 32160)] == [16000, 16000, 160]


def test_a_failed_measurement_of_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    with pytest.raises(ValueError, match="no/such/folder"):
        encoding_memory("", "no/such/folder", 1.0)


def test_the_words_of_the_command_line() -> None:
    for words in (("--help",), ("-h",)):
        assert f"audio: {BENCHMARKS['audio'].about}" in run_script("benchmark", *words).out
    flags = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(AudioBenchmark)}
    text = run_script("benchmark", "audio", "--help").out
    assert [flag for flag in flags if flag not in text] == []
    assert_refused(run_script("benchmark", code=None), "no benchmark named", "audio: ")
    assert_refused(run_script("benchmark", "video", code=None), "unknown benchmark 'video'", "audio: ")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ("--preset", "emoji"),
            ("--preset emoji is of pictures", "audio-small, audio-small-waveform, audio-16k"),
        ),
        (
            ("--preset", "audio"),
            ("--preset audio is unknown", "audio-small, audio-small-waveform, audio-16k"),
        ),
        (("--preset", "audio-16k", "--tokenizer", "x"), ("both given",)),
        (("--tokenizer", "no/such/folder"), ("no/such/folder",)),
        (("--seconds", "0"), ("seconds is 0",)),
        (("--turns", "0"), ("turns is 0",)),
    ],
)
def test_wrong_words_of_audio_are_named(words: tuple[str, ...], named: tuple[str, ...]) -> None:
    assert_refused(run_script("benchmark", "audio", *words, code=None), *named)


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path / "pictures")
    with pytest.raises(ValueError, match=r"--tokenizer .*pictures.* sound; .*--preset"):
        load_tokenizer("", str(tmp_path / "pictures"))
    codec("gaussian").save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"--tokenizer .*vae .*no codes.*; .*--preset"):
        load_tokenizer("", str(tmp_path / "vae"))


def test_without_transformers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=re.escape(install_extra("bench"))):
        encodec(CPU)


def test_values_are_json(folder: Path, tiny_peer: None) -> None:
    options = AudioBenchmark(tokenizer=str(folder), seconds=0.05, turns=1, warm_up=0, device="cpu")
    values = BENCHMARKS["audio"].measure(options)
    assert json.loads(json.dumps(values)) == values
