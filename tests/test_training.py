"""What the training scripts share: rates, averaged weights, logs, run folders, and the optimizers."""

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import as_a_new_process
from torch import Tensor, nn

from pipelines.optimizers import Muon, build_optimizers, orthogonalise
from pipelines.options import PriorSize, TokenizerTraining
from pipelines.run_folder import MetricsLog, flatten, options_to_dict, read_metrics, run_folder
from pipelines.training import (
    WeightAverage,
    check_batch,
    rate_scale,
    require_finite,
    seed_layers,
    set_rates,
    short_run,
    start_accelerator,
)
from prior import Prior, PriorConfig
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.bottlenecks.gaussian import GaussianConfig
from tokenizer.bottlenecks.vq import VQConfig

PRIOR = PriorConfig(codebook_size=8, grid=(2, 2), class_names=("a", "b"), dim=24, depth=1, heads=2)


@pytest.fixture
def accelerator() -> Any:
    with as_a_new_process():
        yield Accelerator(cpu=True)


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


def test_averaged_is_a_copy_with_the_averages_and_the_buffers_as_they_are() -> None:
    tok = tiny_tokenizer_model().train()
    average = WeightAverage(tok, 0.5)
    with torch.no_grad():
        for p in tok.parameters():
            p.add_(1.0)
    tok.bottleneck.codebook.entries.fill_(0.25)
    average.update(tok, 100)
    trained, drawn = weights(tok), torch.get_rng_state()
    copy = average.averaged(tok)
    assert type(copy) is Tokenizer and not copy.training and tok.training
    for name, p in copy.named_parameters():
        torch.testing.assert_close(p.detach(), trained[name] - 0.5)
    assert bool((copy.bottleneck.codebook.entries == 0.25).all())
    # What trains is neither changed nor shared, and the noise to come is the same.
    assert all(torch.equal(p, trained[n]) for n, p in tok.named_parameters())
    with torch.no_grad():
        next(copy.parameters()).zero_()
    assert all(torch.equal(p, trained[n]) for n, p in tok.named_parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


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
    with pytest.raises(KeyError, match="another model"):
        average.load({"weight": torch.zeros(2, 2)})


# Logs


def test_metrics_log_appends_rows(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, True)
    log.add(1, {"a": 0.5})
    log.add(2, {"b": 1.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "a": 0.5}, {"step": 2, "b": 1.5}]


def test_metrics_log_drops_what_a_resume_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": step / 2} for step in range(1, 8)]
    half = '{"step": 8, "lo'  # killed while writing
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + half)
    assert read_metrics(path) == rows
    log = MetricsLog(path, 4, True)
    assert read_metrics(path) == rows[:4]
    log.add(5, {"loss": 9.0})
    assert read_metrics(path) == [*rows[:4], {"step": 5, "loss": 9.0}]
    assert "lo\n" not in path.read_text()


def test_metrics_log_from_the_beginning_forgets_an_older_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n')
    MetricsLog(path, 0, True)
    assert path.read_text() == ""


def test_metrics_log_of_other_processes_touches_nothing(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.jsonl", 0, False).add(1, {"a": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_named() -> None:
    require_finite({"loss": 1.0}, 3)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"step 7: l1 is .*--learning-rate.*last checkpoint is intact"):
            require_finite({"loss": 1.0, "l1": value}, 7)


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
    with as_a_new_process(), pytest.raises(ValueError, match=r"fp16 is not for CPUs.*bf16 or no"):
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
        options = short_run(TokenizerTraining(max_steps=max_steps, model=model), log=True)
        assert options.max_steps == max_steps
        return options.model.bottleneck.kmeans_steps

    assert steps(11, 10) == 10 and steps(5, 0) == 0 and not caplog.records
    assert steps(10, 10) == 5 and "codes start after step 5" in caplog.text
    assert steps(1, 10) == 1
    vae = TokenizerTraining(max_steps=1, model=TokenizerConfig(bottleneck=GaussianConfig()))
    assert short_run(vae, log=True) == vae


# Run folders


def options_in(folder: Path, **changes: Any) -> TokenizerTraining:
    return dataclasses.replace(TokenizerTraining(output=folder, max_steps=10), **changes)


def test_a_run_folder_holds_the_options(accelerator: Accelerator, tmp_path: Path) -> None:
    options = options_in(tmp_path / "deep" / "run")
    with run_folder(accelerator, options) as folder:
        assert folder == tmp_path / "deep" / "run"
    assert json.loads((folder / "run.json").read_text()) == options_to_dict(options)
    values = flatten(options_to_dict(options))
    assert values["model.bottleneck.codebook_size"] == 512 and values["output"] == str(folder)


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_a_folder_that_holds_another_run_is_refused(
    name: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("{}")
    with (
        pytest.raises(ValueError, match=f"{tmp_path} already holds a run; .*--output.*--resume latest"),
        run_folder(accelerator, options_in(tmp_path)),
    ):
        pass
    assert (tmp_path / name).read_text() == "{}"
    assert {p.name for p in tmp_path.iterdir()} == {name, ".lock"}


def test_two_runs_at_once_into_one_folder_are_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    with (
        run_folder(accelerator, options_in(tmp_path)),
        pytest.raises(ValueError, match=f"{tmp_path}: another run is writing here; .*--output"),
        run_folder(accelerator, options_in(tmp_path, resume="latest")),
    ):
        pass
    with run_folder(accelerator, options_in(tmp_path, resume="latest")):  # free again
        pass


def test_the_lock_ends_with_a_failed_run(accelerator: Accelerator, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_folder(accelerator, options_in(tmp_path)):
        raise ZeroDivisionError
    with run_folder(accelerator, options_in(tmp_path, resume="latest")):
        pass


def test_a_file_in_place_of_the_folder_is_named(accelerator: Accelerator, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=str(tmp_path / "file")),
        run_folder(accelerator, options_in(tmp_path / "file")),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "flag", "now", "was"),
    [
        ({"seed": 3}, "--seed", "3", "0"),
        ({"batch_size": 32}, "--batch-size", "32", "64"),
        ({"optimizer": "adamw"}, "--optimizer", "'adamw'", "'muon'"),
        (
            {"model": TokenizerConfig(bottleneck=VQConfig(codebook_size=8))},
            "--model.bottleneck.codebook-size",
            "8",
            "512",
        ),
        (
            {"model": TokenizerConfig(bottleneck=GaussianConfig())},
            "--model.bottleneck.(beta|kind)",
            "(None|'gaussian')",
            "(0.25|'vq')",
        ),
    ],
)
def test_a_resume_with_another_option_names_flag_and_both_values(
    changes: dict[str, Any], flag: str, now: str, was: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    with run_folder(accelerator, options_in(tmp_path)):
        pass
    before = (tmp_path / "run.json").read_bytes()
    with (
        pytest.raises(ValueError, match=f"^{flag} is {now}, but the run in {tmp_path} has {was}; "),
        run_folder(accelerator, options_in(tmp_path, resume="latest", **changes)),
    ):
        pass
    assert (tmp_path / "run.json").read_bytes() == before


def test_options_that_change_nothing_learnt_may_change(accelerator: Accelerator, tmp_path: Path) -> None:
    with run_folder(accelerator, options_in(tmp_path)):
        pass
    changes = {
        **{"checkpoint_every": 3, "keep_checkpoints": 5, "log_every": 2, "eval_every": 7},
        **{"tracker": "none", "push_to_hub": "me/it"},
    }
    options = options_in(tmp_path, resume="latest", **changes)
    with run_folder(accelerator, options):
        pass
    assert json.loads((tmp_path / "run.json").read_text())["checkpoint_every"] == 3


def test_max_steps_may_grow_but_not_shrink(
    accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with run_folder(accelerator, options_in(tmp_path)):
        pass
    with run_folder(accelerator, options_in(tmp_path, resume="latest", max_steps=12)):
        pass
    assert "max_steps grows from 10 to 12; the schedule of rates follows" in caplog.text
    with (
        pytest.raises(ValueError, match=r"--max-steps may only grow on a resume: it was 12, now 11"),
        run_folder(accelerator, options_in(tmp_path, resume="latest", max_steps=11)),
    ):
        pass


# Optimizers


@pytest.mark.parametrize("shape", [(32, 32), (24, 96), (96, 24), (64, 1000)])
def test_orthogonalise_brings_singular_values_near_1(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(shape[0], shape[0], generator=generator)).Q
    right = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator)).Q
    # Singular values over a range of 30, in directions that the result must keep.
    values = torch.logspace(0, -1.5, min(shape))
    matrix = 100 * left[:, : len(values)] * values @ right[: len(values)]
    result = orthogonalise(matrix)
    assert result.shape == matrix.shape and result.dtype == matrix.dtype
    found = torch.linalg.svdvals(result)
    assert float(found.min()) > 0.6 and float(found.max()) < 1.3
    kept = torch.diagonal(left[:, : len(values)].T @ result @ right[: len(values)].T)
    assert bool((kept > 0.6).all())


def test_orthogonalise_of_nothing_is_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(24, 24)), torch.zeros(24, 24))


def test_muons_first_step_on_a_convolution_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(48, 24, 1, 1, generator=generator))
    before, grad = weight.detach().clone(), torch.randn(48, 24, 1, 1, generator=generator)
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    weight.grad = grad.clone()
    optimizer.step()
    # Nesterov: 0.1 g is the average, g + 0.9 (0.1 g − g) = 0.19 g the update; its length does not count.
    expected = before * (1 - 0.1 * 0.5) - 0.1 * math.sqrt(2) * orthogonalise(grad.flatten(1)).view(
        48, 24, 1, 1
    )
    torch.testing.assert_close(weight.detach(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(optimizer.state[weight]["momentum"], 0.1 * grad)
    moved = torch.linalg.svdvals((before * 0.95 - weight.detach()).flatten(1))
    assert 0.6 * 0.1 * math.sqrt(2) < float(moved.min()) <= float(moved.max()) < 1.3 * 0.1 * math.sqrt(2)


def test_muons_second_step_remembers_the_first() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.zeros(24, 30))
    grads = [torch.randn(24, 30, generator=generator) for _ in range(2)]
    optimizer = Muon([weight], lr=1.0, momentum=0.9)
    for grad in grads:
        before = weight.detach().clone()
        weight.grad = grad.clone()
        optimizer.step()
    momentum = 0.9 * 0.1 * grads[0] + 0.1 * grads[1]
    expected = orthogonalise(0.1 * grads[1] + 0.9 * momentum)
    torch.testing.assert_close(before - weight.detach(), expected, atol=1e-4, rtol=1e-4)


def test_muon_leaves_weights_without_a_gradient_alone() -> None:
    weight = nn.Parameter(torch.ones(24, 24))
    Muon([weight], lr=1.0, weight_decay=0.5).step()
    assert torch.equal(weight, torch.ones(24, 24))


def tiny_tokenizer_model() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(bottleneck=VQConfig(codebook_size=8)))


def parts(model: nn.Module, kind: str, **options: Any) -> list[list[set[str]]]:
    """The names of the parameters in each group of each optimizer."""
    names = {id(p): n for n, p in model.named_parameters()}
    optimizers = build_optimizers(model, kind, 1e-3, 0.02, 0.1, **options)
    return [[{names[id(p)] for p in g["params"]} for g in o.param_groups] for o in optimizers]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("build", [tiny_tokenizer_model, lambda: Prior(PRIOR)])
def test_every_parameter_has_one_optimizer(build: Any, kind: str) -> None:
    model = build()
    groups = [group for optimizer in parts(model, kind) for group in optimizer]
    assert sum(map(len, groups)) == len(list(model.parameters()))
    assert set().union(*groups) == {n for n, _ in model.named_parameters()}


def test_muon_gets_the_hidden_matrices_of_the_tokenizer() -> None:
    model = tiny_tokenizer_model()
    (decayed, plain), (muon,) = parts(model, "muon")
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert muon and all(len(shapes[n]) == 4 and min(shapes[n][:2]) >= 24 for n in muon)
    first = next(n for n in shapes if n.startswith("encoder") and n.endswith("weight"))
    last = [n for n in shapes if n.startswith("decoder") and n.endswith("weight")][-1]
    assert {first, last} <= decayed  # 3 channels of pixels
    assert all(len(shapes[n]) == 1 for n in plain)


def test_muon_gets_the_hidden_matrices_of_the_prior() -> None:
    (decayed, plain), (muon,) = parts(Prior(PRIOR), "muon")
    assert muon and all(n.startswith("blocks.") and n.endswith(".weight") for n in muon)
    assert {"code_embedding.weight", "class_embedding.weight", "target_embedding", "head"} <= decayed
    assert "norm.weight" in plain


def test_frozen_weights_stay_away_from_the_optimizers() -> None:
    model = Prior(PRIOR)
    (_, _), (muon,) = parts(model, "muon")
    chosen = min(muon)
    model.get_parameter(chosen).requires_grad_(False)
    groups = [group for optimizer in parts(model, "muon") for group in optimizer]
    assert all(chosen not in group for group in groups)


def test_only_matrices_decay_and_rates_are_those_given() -> None:
    adamw, muon = build_optimizers(Prior(PRIOR), "muon", 1e-3, 0.02, 0.1, betas=(0.9, 0.95))
    assert [g["weight_decay"] for g in adamw.param_groups] == [0.1, 0.0]
    assert {g["lr"] for g in adamw.param_groups} == {1e-3} and adamw.defaults["betas"] == (0.9, 0.95)
    assert [(g["lr"], g["weight_decay"]) for g in muon.param_groups] == [(0.02, 0.1)]
    assert len(build_optimizers(Prior(PRIOR), "adamw", 1e-3, 0.02, 0.1)) == 1


def test_the_priors_sizes_are_its_configs_defaults() -> None:
    size, config = PriorSize(), PriorConfig()
    same = [f.name for f in dataclasses.fields(size) if f.name != "pattern"]
    sizes = {f: getattr(config, f) for f in same}
    assert dataclasses.asdict(size) == {**sizes, "pattern": ""}  # chosen by the tokens, if not by name


def test_codebooks_do_not_decay() -> None:
    for update in ("gradient", "simvq"):
        tok = Tokenizer(TokenizerConfig(bottleneck=VQConfig(update=update, dim=8, codebook_dim=4)))
        (adamw,) = build_optimizers(tok, "adamw", 1e-3, 0.02, 0.1)
        decayed = {id(p) for group in adamw.param_groups if group["weight_decay"] for p in group["params"]}
        names = {n for n, p in tok.bottleneck.named_parameters() if id(p) in decayed}
        assert names == {"project_in.weight", "project_out.weight"}
