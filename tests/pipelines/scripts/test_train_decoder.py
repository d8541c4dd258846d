"""The second stage as a script: it leaves a tokenizer with the same codes, resumes to the byte, and refuses
what cannot be before data are read.
"""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines import train_decoder
from pipelines.training.adversary import PATIENCE, Adversary
from pipelines.training.options import AdversarialOptions
from prior import Prior
from tests.helpers.running import MODEL, Finished, Script, assert_refused, without_plots
from tests.helpers.tiny import pictures
from tests.helpers.whole_runs import assert_same_run, rows_of, stopped_at
from tokenizer import Tokenizer
from tokenizer.discriminators import Jury
from tokenizer.distributed import Step

STEPS = ("--max-steps", 12, "--checkpoint-every", 4, "--keep-checkpoints", 9, "--eval-every", 5)
COMMON = ("--log-every", 1, "--warmup-steps", 2, "--tracker", "none", "--adversarial.width", 4)
PICTURES = (
    "pictures",
    "--batch-size",
    16,
    "--data.limit",
    32,
    "--losses.l2",
    1.0,
    "--losses.l1",
    0,
    "--losses.cauchy",
    0,
    "--decoder.deeper",
    1,
    "--optimizer",
    "adamw",
)
PICTURES += ("--adversarial.weight", 0.1, "--adversarial.start", 3, *COMMON, *STEPS)
JUDGED = ("--adversarial.names", "period", "--adversarial.weight", 1, "--adversarial.feature-weight", 2)
SOUND = ("speech", "--batch-size", 4, "--data.limit", 2, *JUDGED, *COMMON)
SOUND += ("--adversarial.start", 1, "--max-steps", 3)


@pytest.fixture(scope="module")
def whole(script: Script, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder") / "whole"
    script("train_decoder", *PICTURES, "--tokenizer", tiny_tokenizer, "--output", folder)
    return folder


def test_a_run_leaves_the_same_codes_and_another_decoder(whole: Path, tiny_tokenizer: Path) -> None:
    assert {path.name for path in whole.iterdir()} >= MODEL | {"reconstructions.png", "loss.png"}
    old, new = Tokenizer.from_pretrained(tiny_tokenizer), Tokenizer.from_pretrained(whole)
    assert new.fingerprint() == old.fingerprint()
    x = pictures(4, 3, 32, 32)
    codes = old.encode(x)
    assert torch.equal(new.encode(x), codes) and not torch.equal(new.decode(codes), old.decode(codes))
    card = (whole / "README.md").read_text()
    assert "none differs" in card and "Before → after: psnr" in card


def test_its_log_tells_both_sides(whole: Path) -> None:
    rows = [row for row in rows_of(whole) if "train/loss" in row]
    assert [("train/adversarial" in row) for row in rows] == [False] * 3 + [True] * 9
    for row in rows:
        assert 0 <= row["train/discriminator_accuracy"] <= 1
        assert row["train/gradient_norm"] > 0 < row["train/discriminator_gradient_norm"]
        weighted = sum(value for name, value in row.items() if name.startswith("train/loss_"))
        assert row["train/loss"] == pytest.approx(weighted, rel=1e-5)
    assert rows[-1]["train/loss_adversarial"] == pytest.approx(0.1 * rows[-1]["train/adversarial"])


def test_tokens_and_priors_of_the_old_one_stay_valid(
    whole: Path, tiny_prior: Path, script: Script, tmp_path: Path
) -> None:
    words = ("--prior", tiny_prior, "--tokenizer", whole, "--num", 2, "--output", tmp_path)
    script("sample", *words)
    assert (tmp_path / "samples.png").exists()
    Prior.from_pretrained(tiny_prior).check_tokenizer(Tokenizer.from_pretrained(whole).fingerprint())


def test_a_resumed_run_ends_in_the_same_bytes(whole: Path, script: Script, tmp_path: Path) -> None:
    folder = stopped_at(8, whole, tmp_path / "run")
    with without_plots():
        script("train_decoder", "--output", folder, "--resume", "latest")
    assert_same_run(folder, whole)
    for name in ("model.safetensors", "config.json"):
        assert (folder / "discriminator" / name).read_bytes() == (whole / "discriminator" / name).read_bytes()


def test_balanced_losses_resume_to_the_byte(
    tiny_tokenizer: Path, script: Script, no_plots: None, tmp_path: Path
) -> None:
    words = (*PICTURES, "--tokenizer", tiny_tokenizer, "--adversarial.balance", "--max-steps", 6)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    script("train_decoder", *words, "--output", whole)
    rows = [row for row in rows_of(whole) if "train/loss" in row]
    assert all("train/loss_balanced" in row and "train/l2" in row for row in rows)
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("step-6", "config.json"))
    script("train_decoder", "--output", folder, "--resume", "latest")
    for name in ("model.safetensors", "checkpoints/step-6/balance.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_balanced_losses_in_bf16(
    tiny_tokenizer: Path, script: Script, no_plots: None, tmp_path: Path
) -> None:
    words = (*PICTURES, "--tokenizer", tiny_tokenizer, "--adversarial.balance", "--mixed-precision", "bf16")
    script("train_decoder", *words, "--max-steps", 5, "--eval-every", 9, "--output", tmp_path / "run")
    rows = [row for row in rows_of(tmp_path / "run") if "train/loss" in row]
    assert len(rows) == 5 and all(math.isfinite(value) for row in rows for value in row.values())
    assert "train/adversarial" in rows[-1] and rows[-1]["train/gradient_norm"] > 0


def test_going_on_from_discriminators(
    whole: Path, tiny_tokenizer: Path, script: Script, no_plots: None, tmp_path: Path
) -> None:
    words = (*PICTURES, "--tokenizer", tiny_tokenizer, "--discriminator", whole / "discriminator")
    words += ("--adversarial.smoothness", 0.1)
    script("train_decoder", *words, "--max-steps", 4, "--output", tmp_path / "more")
    losses = [rows_of(folder)[0]["train/discriminator"] for folder in (whole, tmp_path / "more")]
    assert losses[0] != losses[1]  # what the first run learnt is there from the first step


def test_sound_and_a_vae_and_another_decoder(
    tiny_codec: Path, tiny_vae: Path, script: Script, no_plots: None, tmp_path: Path
) -> None:
    script("train_decoder", *SOUND, "--tokenizer", tiny_codec, "--output", tmp_path / "sound")
    old, new = Tokenizer.from_pretrained(tiny_codec), Tokenizer.from_pretrained(tmp_path / "sound")
    assert new.fingerprint() == old.fingerprint()
    assert "period" in (tmp_path / "sound" / "discriminator" / "README.md").read_text()

    digits = ("pictures", "--data.path", "embedded:digits", "--data.limit", 32, "--batch-size", 16, *COMMON)
    digits += (
        "--adversarial.start",
        1,
        "--max-steps",
        3,
        "--losses.l1",
        1.0,
        "--decoder.widths",
        *"88888",
    )
    finished = script("train_decoder", *digits, "--tokenizer", tiny_vae, "--output", tmp_path / "vae")
    assert "takes no weights" in finished.err
    old, new = Tokenizer.from_pretrained(tiny_vae), Tokenizer.from_pretrained(tmp_path / "vae")
    assert new.config.decoder.widths == (8,) * 5 and old.config.decoder.widths is None
    x = pictures(4, 1, 28, 28)
    assert torch.equal(new.posterior(x).mean, old.posterior(x).mean)
    card = (tmp_path / "vae" / "README.md").read_text()
    assert "means and log-variances" in card and "none differs" in card


def test_without_discriminators(tiny_tokenizer: Path, script: Script, no_plots: None, tmp_path: Path) -> None:
    words = (*PICTURES, "--max-steps", 2, "--adversarial.weight", 0, "--tokenizer", tiny_tokenizer)
    script("train_decoder", *words, "--output", tmp_path / "run")
    assert not (tmp_path / "run" / "discriminator").exists()
    assert not any("discriminator" in name for row in rows_of(tmp_path / "run") for name in row)


def test_codes_that_change_end_the_run(
    tiny_tokenizer: Path, script: Script, no_plots: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What must not be is not hidden, and no model is written."""
    coded, calls = train_decoder.coded, []

    def one_off(tok: Tokenizer, x: Tensor) -> tuple[Tensor, ...]:
        calls.append(tok)
        (codes,) = coded(tok, x)
        return (codes.index_fill(0, torch.tensor(0), 0) if len(calls) % 2 else codes,)

    monkeypatch.setattr(train_decoder, "coded", one_off)
    words = (*PICTURES, "--max-steps", 4, "--tokenizer", tiny_tokenizer, "--output", tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"\d+ of \d+ codes differ"):
        script("train_decoder", *words)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_leaves_both_sides_as_they_are(
    tiny_tokenizer: Path, script: Script, no_plots: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    losses_of = train_decoder.losses_of

    def spoilt(net: nn.Module, rows: slice, step: Step | None, **given: Any) -> Any:
        losses, stats = losses_of(net, rows, step, **given)
        if step is not None and step.index == 2:
            losses = {k: v * torch.nan for k, v in losses.items()}
        return losses, stats

    monkeypatch.setattr(train_decoder, "losses_of", spoilt)
    words = (*PICTURES, "--tokenizer", tiny_tokenizer, "--max-steps", 4, "--checkpoint-every", 1)
    finished = script("train_decoder", *words, "--skip-non-finite", 1, "--output", tmp_path / "run")
    assert finished.err.count("not finite: left out") == 1
    steps = [tmp_path / "run" / "checkpoints" / f"step-{i}" for i in (1, 2, 3, 4)]
    for name in ("model", "discriminator", "optimizers"):
        files = [(step / f"{name}.safetensors").read_bytes() for step in steps]
        assert [a != b for a, b in pairwise(files)] == [True, False, True], name


class TestWarnings:
    """Where one side has won, a warning says so with the fix."""

    @pytest.mark.parametrize(
        ("accuracy", "what", "fix"),
        [(1.0, "nearly always tell", "lower --adversarial.learning-rate"), (0.5, "can hardly tell", "raise")],
    )
    def test_one_side_has_won(self, accuracy: float, what: str, fix: str) -> None:
        adversary = _adversary(accuracy, PATIENCE)
        (event,) = adversary.events()
        assert what in event.text and fix in event.text and "--adversarial.weight" in event.text
        assert adversary.events() == []  # nothing happened since

    def test_neither_has_or_it_is_early(self) -> None:
        assert _adversary(0.8, PATIENCE).events() == [] == _adversary(1.0, PATIENCE - 1).events()


def _adversary(accuracy: float, passes: int) -> Adversary:
    adversary = Adversary.__new__(Adversary)
    adversary.options = AdversarialOptions()
    adversary._right, adversary._passes, adversary._since = torch.tensor(accuracy * 10), passes, 10
    return adversary


def test_bad_input_is_refused_before_data_are_read(
    whole: Path, tiny_tokenizer: Path, tiny_codec: Path, script: Script, tmp_path: Path
) -> None:
    def refused(*words: object, run: tuple[object, ...] = PICTURES) -> Finished:
        path = ("--data.path", "/nowhere", "--output", tmp_path / "no")
        finished = script("train_decoder", *run, *path, *words, code=2)
        assert not (tmp_path / "no").exists()
        return finished

    of = ("--tokenizer", tiny_tokenizer)
    assert_refused(refused(), "--tokenizer DIR")
    assert_refused(refused("--tokenizer", tmp_path / "none"), "--tokenizer", "none")
    assert_refused(refused(*of, "--adversarial.start", 12), "--adversarial.start is 12", "--max-steps 12")
    assert_refused(refused(*of, "--adversarial.names", "stft"), "'stft'", "image; known: features, patch")
    assert_refused(refused(*of, "--decoder.widths", 8), "decoder", "one value per level")
    assert_refused(refused(*of, "--losses.mel", 1.0), "'mel'", "known")
    assert_refused(refused(*of, "--mixed-precision", "fp16"), "fp16", "bf16")
    wrong = ("--discriminator", tiny_tokenizer)
    assert_refused(refused(*of, *wrong), "--discriminator", "model_type", "tokenloom-discriminator")
    assert_refused(
        refused("--tokenizer", tiny_codec, "--discriminator", whole / "discriminator", run=SOUND),
        "image of 3 channels",
        "audio of 1",
    )
    assert_refused(
        refused(*of, "--adversarial.weight", 0, "--discriminator", whole / "discriminator"), "no effect"
    )
    assert_refused(
        refused("--tokenizer", tiny_codec, "--adversarial.names", "stft", run=SOUND), "1600", "2048"
    )
    assert_refused(refused(*of, "--perceptual", "torchvision:nothing"), "torchvision:vgg16")
    assert_refused(
        refused("--tokenizer", tiny_codec, "--perceptual", "torchvision:vgg16", run=SOUND), "for pictures"
    )


def test_a_preset_for_other_data_is_refused(
    tiny_tokenizer: Path, tiny_codec: Path, script: Script, tmp_path: Path
) -> None:
    for preset, tok, other in (("speech", tiny_tokenizer, "pictures"), ("pictures", tiny_codec, "speech")):
        words = (preset, "--tokenizer", tok, "--output", tmp_path / "no")
        finished = script("train_decoder", *words, code=2)
        assert_refused(finished, f"the preset {preset} is not for", f"train_decoder.py {other}")


def test_a_short_run_is_called_so(whole: Path, tiny_tokenizer: Path, script: Script, tmp_path: Path) -> None:
    words = ("pictures", "--tokenizer", tiny_tokenizer, "--data.path", "/nowhere", "--warmup-steps", 2)
    for steps, short in ((239, True), (240, False)):
        given = ("--max-steps", steps, "--adversarial.start", 3, "--output", tmp_path / "no")
        finished = script("train_decoder", *words, *given, code=2)
        said = f"--max-steps {steps} is short (the preset has 2400)"
        assert (said in finished.err) == short, finished.err
    resumed = script("train_decoder", "--output", whole, "--resume", "latest")
    assert "is short" not in resumed.err and "is finished" in resumed.err


def test_a_tokenizer_of_another_modality_than_the_data(
    tiny_codec: Path, script: Script, tmp_path: Path
) -> None:
    words = (*SOUND, "--data.path", "embedded:emoji", "--tokenizer", tiny_codec, "--output", tmp_path / "no")
    assert_refused(script("train_decoder", *words, code=2), "embedded:emoji", "sound")


def test_a_resume_with_another_tokenizer_is_refused(
    whole: Path, tiny_tokenizer: Path, script: Script, tmp_path: Path
) -> None:
    folder = stopped_at(8, whole, tmp_path / "run")
    other = tmp_path / "other"
    shutil.copytree(tiny_tokenizer, other, ignore=shutil.ignore_patterns("checkpoints", "logs"))
    tok = Tokenizer.from_pretrained(other)
    with torch.no_grad():
        next(tok.encoder.parameters()).add_(0.1)
    tok.save_pretrained(other)
    words = ("--output", folder, "--resume", "latest", "--tokenizer", other)
    fingerprints = [tok.fingerprint(), json.loads((whole / "config.json").read_text())["fingerprint"]]
    assert_refused(script("train_decoder", *words, code=2), *fingerprints, "that it began with")


def test_the_discriminators_can_be_loaded(whole: Path) -> None:
    jury = Jury.from_pretrained(whole / "discriminator")
    assert [m.kind for m in jury.config.members] == ["patch"] and jury.config.members[0].width == 4
