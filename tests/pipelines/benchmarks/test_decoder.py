"""The benchmark of the second stage, on tiny networks."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.benchmarks.decoder import stages
from pipelines.benchmarks.decoder.stages import STAGES, peak_of_steps, stage_of
from pipelines.benchmarks.process_memory import MIB
from pipelines.presets import DECODERS, TOKENIZERS
from pipelines.run.command_line import Preset
from pipelines.training.options import DecoderTraining, TokenizerTraining
from tests.helpers import tiny
from tests.helpers.running import Script, assert_refused, read


def small() -> tuple[TokenizerTraining, DecoderTraining]:
    model = tiny.tokenizer("vq").config
    model = dataclasses.replace(model, modality=dataclasses.replace(model.modality, size=(32, 32)))
    first = dataclasses.replace(TOKENIZERS["emoji"].build(), batch_size=4, model=model, optimizer="adamw")
    second = DECODERS["pictures"].build()
    jury = dataclasses.replace(second.adversarial, width=4, weight=0.1)
    return first, dataclasses.replace(second, adversarial=jury)


@pytest.fixture
def tiny_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = small()
    monkeypatch.setitem(TOKENIZERS, "emoji", Preset(lambda: first, ""))
    monkeypatch.setitem(DECODERS, "pictures", Preset(lambda: second, ""))


@pytest.mark.usefixtures("tiny_presets")
def test_it_prints_and_writes(script: Script, tmp_path: Path) -> None:
    words = ("decoder", "--turns", 2, "--warm-up", 1, "--no-memory", "--output", tmp_path)
    done = script("benchmark", *words)
    values = read(tmp_path / "benchmark-decoder.json")
    assert list(values["stages"]) == [*STAGES] and values["stages"][STAGES[0]]["times_first"]["median"] == 1
    assert all(values["stages"][name]["ms"]["low"] > 0 and name in done.out for name in STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_learns_what_is_its(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = stage_of(name, *small())
    held = dict(
        zip(step.__code__.co_freevars, (cell.cell_contents for cell in step.__closure__ or ()), strict=True)
    )
    tok, adversary = getattr(held["trained"], "tok", held["trained"]), held["adversary"]
    parts = {"encoder": tok.encoder, "decoder": tok.decoder}
    if adversary is not None:
        parts["jury"] = adversary.net
    before = {part: [p.clone() for p in module.parameters()] for part, module in parts.items()}
    for _ in range(4):
        step()
    changed = {
        part
        for part, module in parts.items()
        if any(not (a == b).all() for a, b in zip(before[part], module.parameters(), strict=True))
    }
    assert changed == ({"encoder", "decoder"} if name == STAGES[0] else {"decoder", "jury"})


@pytest.mark.usefixtures("tiny_presets")
def test_memory_is_what_steps_add(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100 * MIB, 130 * MIB])
    monkeypatch.setattr(stages, "peak", lambda: next(peaks))
    assert peak_of_steps(STAGES[2], "emoji", "pictures", steps=1) == 30


def test_unknown_presets_are_refused(script: Script) -> None:
    for flag, known in (("--tokenizer", "emoji"), ("--decoder", "pictures")):
        assert_refused(script("benchmark", "decoder", flag, "none", code=2), f"{flag}: ", "'none'", known)
