"""What the training scripts share: rates, averaged weights, batches, precision, noise, and short runs.

Left out: the optimizers (test_optimizers.py), and run folders with their logs (test_run_folder.py).
"""

import dataclasses
import logging
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.training import setup
from pipelines.training.averaging import WeightAverage, round_weights
from pipelines.training.optimizers import Muon
from pipelines.training.options import PriorSize, TokenizerTraining
from pipelines.training.setup import (
    check_batch,
    rate_scale,
    require_finite_terms,
    seed_layers,
    set_rates,
    short_run,
    start_accelerator,
)
from prior import Prior, PriorConfig
from tests.helpers.running import as_a_new_process
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.bottlenecks.gaussian import GaussianConfig
from tokenizer.bottlenecks.vq import VQConfig

PRIOR = PriorConfig(codebook_size=8, grid=(2, 2), class_names=("a", "b"), dim=24, depth=1, heads=2)


def tiny_tokenizer_model() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(bottleneck=VQConfig(codebook_size=8)))


# Rates


def test_rates_rise_linearly_then_fall_along_a_cosine_to_0() -> None:
    assert rate_scale(0, 4, 100) == 0.25
    assert rate_scale(1, 4, 100) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.01)))
    assert rate_scale(50, 4, 100) == pytest.approx(0.5)
    assert rate_scale(100, 4, 100) == pytest.approx(0)
    assert rate_scale(150, 4, 100) == pytest.approx(0)  # never up again
    after = [rate_scale(step, 4, 100) for step in range(3, 100)]
    assert after == sorted(after, reverse=True) and min(after) > 0


def test_without_warm_up_the_first_rate_is_the_peak() -> None:
    assert rate_scale(0, 0, 10) == 1


def test_set_rates_scales_every_groups_own_peak() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    first = torch.optim.AdamW([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.4}])
    second = Muon([nn.Parameter(torch.ones(2, 2))], lr=0.02)
    for scale in (0.5, 0.25, 1.0):  # not compounded from call to call
        set_rates([first, second], scale)
        assert [g["lr"] for g in first.param_groups] == [0.1 * scale, 0.4 * scale]
        assert second.param_groups[0]["lr"] == 0.02 * scale


# Averaged weights


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_weight_average_by_hand() -> None:
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0), model.bias.fill_(0.0)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(4.0), model.bias.fill_(1.0)
    average.update(model, 1)  # decay (1 + 1) / (10 + 1), shorter than 0.9
    assert float(average.shadow["weight"]) == pytest.approx(2 * 2 / 11 + 4 * 9 / 11)
    assert float(average.shadow["bias"]) == pytest.approx(9 / 11)
    before = float(average.shadow["weight"])
    average.update(model, 1000)  # decay 0.9
    assert float(average.shadow["weight"]) == pytest.approx(0.9 * before + 0.1 * 4)
    assert model.weight.item() == 4.0


def test_averaged_has_the_averages_and_the_buffers_as_they_are_and_takes_no_memory() -> None:
    tok = tiny_tokenizer_model().train()
    average = WeightAverage(tok, 0.5)
    with torch.no_grad():
        for p in tok.parameters():
            p.add_(1.0)
    tok.bottleneck.codebook.entries.fill_(0.25)
    average.update(tok, 100)
    trained, drawn, held = weights(tok), torch.get_rng_state(), storages(average.shadow.values())
    found = average.averaged(tok)
    assert type(found) is Tokenizer and not found.training and tok.training
    for name, p in found.named_parameters():
        torch.testing.assert_close(p.detach(), trained[name] - 0.5)
        assert not p.requires_grad
    assert bool((found.bottleneck.codebook.entries == 0.25).all())
    assert storages(found.parameters()) == held and storages(found.buffers()) == storages(tok.buffers())
    # What trains stays as it is, learns as before, and the noise to come is the same.
    assert all(torch.equal(p, trained[n]) and p.requires_grad for n, p in tok.named_parameters())
    assert not held & storages(tok.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_averaged_computes_as_one_process_in_float32_whatever_training_does() -> None:
    tok = tiny_tokenizer_model().train()
    x = torch.rand(2, 3, 16, 16)
    expected = WeightAverage(tok, 0.5).averaged(tok)(x).x_hat
    with as_a_new_process():
        prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(tok)
    assert prepared is tok and "forward" in vars(tok)
    assert torch.equal(WeightAverage(tok, 0.5).averaged(tok)(x).x_hat, expected)


def storages(tensors: Iterable[torch.Tensor]) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


def test_rounded_weights_are_bfloat16_in_float32_and_leave_those_that_train_alone() -> None:
    tok = tiny_tokenizer_model()
    average = WeightAverage(tok, 0.5)
    trained, shadow = weights(tok), {name: value.clone() for name, value in average.shadow.items()}
    found = average.averaged(tok)
    round_weights(found, "decoder.")
    for name, value in found.state_dict().items():
        whole = tok.state_dict()[name]
        expected = whole.bfloat16().float() if name.startswith("decoder.") else whole
        assert value.dtype == whole.dtype and torch.equal(value, expected), name
    assert found.fingerprint() == tok.fingerprint()
    round_weights(found)
    assert found.fingerprint() != tok.fingerprint()
    assert all(torch.equal(v, v.bfloat16().to(v.dtype)) for v in found.state_dict().values())
    assert all(torch.equal(p, trained[n]) for n, p in tok.named_parameters())
    assert all(torch.equal(value, shadow[n]) for n, value in average.shadow.items())


def test_decay_0_keeps_the_last_weights() -> None:
    prior = Prior(PRIOR)
    average = WeightAverage(prior, 0.0)
    assert average.shadow == {}
    nn.init.ones_(prior.head)
    average.update(prior, 5)
    assert bool((average.averaged(prior).head == 1).all())


def test_averages_of_another_model_are_refused() -> None:
    average = WeightAverage(nn.Linear(2, 2), 0.9)
    average.load({"weight": torch.zeros(2, 2), "bias": torch.ones(2)})
    assert torch.equal(average.shadow["bias"], torch.ones(2))
    with pytest.raises(KeyError, match=r"shadow: .*another model.*'bias' is missing; give"):
        average.load({"weight": torch.zeros(2, 2)})
    with pytest.raises(KeyError, match=r"shadow: .*another model.*'extra' is not the model's; give"):
        average.load({**average.shadow, "extra": torch.zeros(1)})


# Losses


def test_values_that_are_not_finite_are_named() -> None:
    require_finite_terms({"loss": 1.0}, 3)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"step 7: l1 .*--learning-rate.*checkpoint"):
            require_finite_terms({"loss": 1.0, "l1": value}, 7)


# Batches, precision, noise


@pytest.mark.parametrize(("size", "accumulation", "world"), [(64, 1, 1), (64, 4, 2), (6, 3, 2), (1, 1, 1)])
def test_batches_that_divide_are_fine(size: int, accumulation: int, world: int) -> None:
    check_batch(size, accumulation, world)


@pytest.mark.parametrize(
    ("size", "accumulation", "world", "nearest"), [(64, 3, 1, 63), (10, 2, 3, 12), (1, 2, 2, 4), (7, 1, 4, 8)]
)
def test_batches_that_do_not_divide_name_the_nearest(
    size: int, accumulation: int, world: int, nearest: int
) -> None:
    expected = f"--batch-size {size} .* {world} processes × {accumulation} accumulation .* is {nearest}$"
    with pytest.raises(ValueError, match=expected):
        check_batch(size, accumulation, world)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_mixed_precision_of_the_options_reaches_accelerate(precision: str, tmp_path: Path) -> None:
    options = TokenizerTraining(output=tmp_path, mixed_precision=precision, tracker="none")
    with as_a_new_process():
        assert start_accelerator(options).mixed_precision == precision


def test_fp16_on_a_cpu_is_refused(tmp_path: Path) -> None:
    options = TokenizerTraining(output=tmp_path, mixed_precision="fp16", optimizer="adamw", tracker="none")
    with as_a_new_process(), pytest.raises(ValueError, match=r"fp16 .*CPUs.*--mixed-precision bf16 or no"):
        start_accelerator(options)


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_on_a_gpu_without_it_is_refused(
    supported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TokenizerTraining(output=tmp_path, mixed_precision="bf16", tracker="none")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    monkeypatch.setattr(setup, "set_seed", lambda seed: None)  # which would seed the GPU
    with as_a_new_process():
        if supported:
            assert start_accelerator(options).mixed_precision == "bf16"
            return
        with pytest.raises(ValueError, match=r"Tesla T4 has no bf16; .*--mixed-precision no, or fp16"):
            start_accelerator(options)


def test_layer_noise_depends_on_seed_step_and_rank() -> None:
    drawn = []
    for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
        seed_layers(*key)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[4] and len(set(drawn)) == 4


def test_a_short_run_starts_k_means_in_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def steps(max_steps: int, kmeans_steps: int) -> int:
        model = TokenizerConfig(bottleneck=VQConfig(kmeans_steps=kmeans_steps))
        options = short_run(TokenizerTraining(max_steps=max_steps, warmup_steps=0, model=model), log=True)
        assert options.max_steps == max_steps
        return options.model.bottleneck.kmeans_steps

    assert steps(11, 10) == 10 and steps(5, 0) == 0 and not caplog.records
    assert steps(10, 10) == 5 and "after step 5" in caplog.text
    assert steps(1, 10) == 1
    vae = TokenizerTraining(max_steps=1, model=TokenizerConfig(bottleneck=GaussianConfig()))
    assert short_run(vae, log=True) == vae


def test_a_short_run_is_called_so_whatever_it_trains(caplog: pytest.LogCaptureFixture) -> None:
    vae = TokenizerConfig(bottleneck=GaussianConfig())
    for model in (TokenizerConfig(bottleneck=VQConfig(kmeans_steps=2)), vae):
        for steps, usual, short in ((99, 1000, True), (100, 1000, False), (10, 0, True), (11, 0, False)):
            caplog.clear()
            options = TokenizerTraining(max_steps=steps, warmup_steps=10, model=model)
            assert short_run(options, log=True, usual=usual) == options
            assert (f"--max-steps {steps} is short" in caplog.text) == short, (steps, usual)
            assert ("the preset has 1000" in caplog.text) == (short and usual > 0)
    caplog.clear()
    short_run(dataclasses.replace(options, max_steps=1, resume="latest"), log=True)
    assert not caplog.records


# Options


def test_the_priors_sizes_are_its_configs_defaults() -> None:
    size, config = PriorSize(), PriorConfig()
    same = [f.name for f in dataclasses.fields(size) if f.name != "pattern"]
    sizes = {f: getattr(config, f) for f in same}
    assert dataclasses.asdict(size) == {**sizes, "pattern": ""}  # chosen by the tokens, if not by name
