"""The benchmark of quantizers: who takes part, equal conditions, trainings kept and gone on with, its files.

Left out: how good anything is, and diffusers' quantizer where diffusers is not installed.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.benchmarks.quantizers import main as benchmark_quantizers
from pipelines.benchmarks.quantizers import memory as bottleneck_memory
from pipelines.benchmarks.quantizers import training as bake_off
from pipelines.benchmarks.quantizers.contestants import Contestant, contestants, levels, shares
from pipelines.benchmarks.quantizers.peers import (
    DiffusersVQConfig,
    PeerConfig,
    PeerFSQConfig,
    VectorQuantizeConfig,
)
from pipelines.benchmarks.quantizers.report import OverSeeds, over_seeds, plot, spaced
from pipelines.benchmarks.quantizers.training import Recipe, build_tokenizer, channels
from tests.helpers.running import Finished, assert_refused, environment, read, run_script, size_of
from tokenizer.bottlenecks import BottleneckConfig, kinds
from tokenizer.distributed import Step
from tokenizer.installation import install_extra

TINY = (
    *("quantizers", "--bits", 6, "--steps", 2, "--prior-steps", 2, "--batch-size", 8, "--widths", 4, 8),
    *("--data.limit", 40, "--turns", 1),
)
PEERS = [
    VectorQuantizeConfig(),
    VectorQuantizeConfig(settings="advised"),
    PeerFSQConfig(),
    DiffusersVQConfig(),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """A finished benchmark of everyone on 2 seeds, and what it printed."""
    path = tmp_path_factory.mktemp("bake-off")
    return path, run_script("benchmark", *TINY, "--seeds", 2, "--no-memory", "--output", path)


def named(name: str, bits: int = 6) -> Contestant:
    (contestant,), _ = contestants(bits, channels(), [name])
    return contestant


def test_all_bottlenecks_with_codes_take_part_at_equal_bits() -> None:
    present, left_out = contestants(9, 8)
    by_name = {c.name: c for c in present}
    assert {"vq", "vq-gradient", "vq-simvq", "vq-cosine", "vq-rotation", "grouped", "rvq"} < by_name.keys()
    for contestant in present:
        built = contestant.config.build()
        assert abs(math.log2(built.codebook_size) * built.num_codebooks - 9) < 0.1, contestant.name
    taking_part = {type(c.config) for c in present}
    codeless = {kind for kind, config in kinds().items() if config not in taking_part}
    assert codeless == {"gaussian"}
    assert {c.name for c in present if c.peer} | left_out.keys() == {
        *("vqp-default", "vqp-advised", "vqp-fsq", "diffusers-vq")
    }
    assert by_name["vq-rotation"].config.build().estimate.__name__ == "rotate"


def test_a_kind_that_is_new_takes_part_with_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class New(BottleneckConfig):
        build: Callable[[], object] = named("vq").config.build

    monkeypatch.setitem(BottleneckConfig.variants, "new", New)
    assert isinstance(named("new").config, New)


def test_bits_are_shared_by_equal_codebooks() -> None:
    assert [shares(bits) for bits in (9, 10, 12, 14, 15)] == [3, 2, 2, 2, 3]
    assert [shares(bits) for bits in (5, 7, 13)] == [None, None, None]
    present, left_out = contestants(7, 8)
    assert {"grouped", "rvq"} <= left_out.keys() and "vq" in {c.name for c in present}
    with pytest.raises(ValueError, match=r"--contestants: rvq: 7 bits .*2 or more.*; give --bits 8"):
        contestants(7, 8, ["rvq"])
    grouped = named("grouped", 9).config.build()
    assert (grouped.num_codebooks, grouped.codebook_size, grouped.in_dim) == (3, 8, 9)


def test_levels_are_those_with_the_nearest_product() -> None:
    assert [levels(bits) for bits in (5, 6, 9, 10)] == [(6, 5), (8, 8), (8, 8, 8), (8, 5, 5, 5)]
    for bits in range(5, 19):
        assert abs(math.log2(math.prod(levels(bits))) - bits) < 0.1 and min(levels(bits)) >= 5


@pytest.mark.parametrize("config", PEERS, ids=lambda c: f"{type(c).__name__}-{getattr(c, 'settings', '')}")
def test_peers_are_bottlenecks(config: PeerConfig) -> None:
    if not config.installed:
        pytest.skip(f"{config.package} is not installed")
    torch.manual_seed(0)
    peer = config.build().train()
    z = torch.randn(6, 8, 4, 5, requires_grad=True)
    for index in range(3):
        out = peer(z, Step(0, index, 0, 6))
    assert out.z_q.shape == z.shape and out.codes.shape == (6, 1, 4, 5) and out.codes.dtype == torch.int64
    (out.z_q.sum() + sum(out.losses.values())).backward()
    assert bool(z.grad.any()) and all(loss.ndim == 0 for loss in out.losses.values())
    peer.eval()
    codes = peer.encode(z)
    assert torch.equal(codes, peer(z).codes) and codes.unique().numel() > 20
    assert int(codes.min()) >= 0 and int(codes.max()) < peer.codebook_size == 512
    torch.testing.assert_close(peer.decode(codes), peer(z).z_q, rtol=1e-5, atol=1e-6)
    assert type(config) not in kinds().values()


def test_diffusers_has_beta_on_the_commitment() -> None:
    if not (config := DiffusersVQConfig(beta=0.0)).installed:
        pytest.skip("diffusers is not installed")
    z = torch.randn(2, 8, 3, 3, requires_grad=True)
    config.build()(z).losses["peer"].backward()
    assert not z.grad.any()


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    present, left_out = contestants(9, 8)
    assert "diffusers-vq" not in {c.name for c in present}
    assert install_extra("bench") in left_out["diffusers-vq"]
    with pytest.raises(ValueError, match=r"diffusers-vq: .*'\.\[bench\]'"):
        contestants(9, 8, ["diffusers-vq"])
    with pytest.raises(ValueError, match=r"diffusers .*'\.\[bench\]'"):
        DiffusersVQConfig().build()


def test_all_begin_with_the_same_encoder_and_decoder() -> None:
    recipe = Recipe(4, 4, 8, (4, 8))
    vq, other, grouped = (
        build_tokenizer(recipe.tokenizer(named(name, 9), seed=1)) for name in ("vq", "vq-simvq", "grouped")
    )
    again = build_tokenizer(recipe.tokenizer(named("vq", 9), seed=2))
    for part in ("encoder", "decoder"):
        a, b, c, d = (list(getattr(t, part).parameters()) for t in (vq, other, grouped, again))
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
        # grouped has 9 channels: only the layer at the bottleneck differs.
        assert [torch.equal(p, q) for p, q in zip(a, c, strict=True) if p.shape == q.shape].count(False) == 0
        assert sum(p.shape != q.shape for p, q in zip(a, c, strict=True)) in (1, 2)
        assert not torch.equal(a[0], d[0])


def test_the_recipe_is_the_preset_s_with_another_bottleneck() -> None:
    options = Recipe(400, 150, 32).tokenizer(named("vq-cosine"), seed=3)
    assert (options.max_steps, options.batch_size, options.seed) == (400, 32, 3)
    assert (options.optimizer, options.learning_rate, options.warmup_steps) == ("muon", 4e-3, 100)
    assert options.model.modality.widths == (32, 96) and options.model.bottleneck.distance == "cosine"
    assert Recipe(8, 8, 32).tokenizer(named("vq"), 0).model.bottleneck.kmeans_steps == 4
    assert Recipe(8, 80, 32).prior(1).warmup_steps == 20


def test_what_is_written(folder: tuple[Path, Finished]) -> None:
    path, done = folder
    values = read(path / "benchmark-quantizers.json")
    rows = {row["contestant"]: row for row in values["results"]}
    assert rows.keys() == {c.name for c in contestants(6, 8)[0]}
    assert len(values["trainings"]) == 2 * len(rows) and values["options"]["seeds"] == 2
    for name, row in rows.items():
        mine = [t["psnr"] for t in values["trainings"] if t["contestant"] == name]
        assert row["psnr"] == dataclasses.asdict(over_seeds(mine)) and 0 < row["psnr"]["mean"] < 40
        assert 0 < row["usage_held_out"]["low"] <= row["usage_train"]["high"] <= 1
        training = next(t for t in values["trainings"] if t["contestant"] == name)
        size, count = training["codebook_size"], training["num_codebooks"]
        assert 1 <= row["perplexity"]["low"] <= row["perplexity"]["high"] <= size
        # A prior that has hardly learnt gives about uniform codes.
        assert row["bits_per_code"]["mean"] == pytest.approx(math.log2(size), rel=0.1)
        assert row["bits_per_position"]["mean"] == pytest.approx(count * row["bits_per_code"]["mean"])
        assert row["memory_mib"] is None and row["step_seconds"]["low"] > 0
        assert f"  {name}  " in done.out
    assert rows["vq"]["step_time_ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert rows["vqp-fsq"]["codes"] == "1 × 64 (8·8)" and "1 × 64 (8·8)" in done.out
    assert rows["vq"]["peer"] is False and rows["vqp-default"]["peer"] is True
    assert min(size_of(path / "benchmark-quantizers.png")) > 300


def test_a_second_start_trains_only_what_is_missing(
    folder: tuple[Path, Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (folder[0] / "benchmark-quantizers.jsonl").read_text().splitlines()
    kept = [line for line in lines[1:] if json.loads(line)["contestant"] in ("vq", "rvq")]
    path = tmp_path / "benchmark-quantizers.jsonl"
    # The last of the 4 trainings was cut off by a crash.
    path.write_text("\n".join([lines[0], *kept])[:-20])
    trained = []

    def spy(contestant: Contestant, *rest: object) -> dict[str, object]:
        trained.append((contestant.name, rest[3]))
        return bake_off.train_contestant(contestant, *rest)

    monkeypatch.setattr(benchmark_quantizers, "train_contestant", spy)
    words = (*TINY, "--no-memory", "--output", tmp_path, "--contestants", "vq", "rvq", "--seeds", 2)
    done = run_script("benchmark", *words)
    assert trained == [("rvq", 1)] and "3 of 4 trainings are in" in done.out
    lost, again = json.loads(kept[-1]), json.loads(path.read_text().splitlines()[-1])
    assert {**lost, "seconds": 0} == {**again, "seconds": 0}  # deterministic: by the seed alone
    run_script("benchmark", *words)
    assert len(trained) == 1 and len(path.read_text().splitlines()) == 5


def test_an_interruption_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(contestant: Contestant, *rest: object) -> dict[str, object]:
        if contestant.name == "rvq":
            raise KeyboardInterrupt
        return bake_off.train_contestant(contestant, *rest)

    monkeypatch.setattr(benchmark_quantizers, "train_contestant", interrupted)
    words = (*TINY, "--output", tmp_path, "--contestants", "vq", "rvq", "--seeds", 1)
    done = run_script("benchmark", *words, code=130)
    assert "the same command goes on" in done.err and str(tmp_path) in done.err
    rows = (tmp_path / "benchmark-quantizers.jsonl").read_text().splitlines()
    assert [json.loads(row)["contestant"] for row in rows[1:]] == ["vq"]


def test_other_options_do_not_mix_with_kept_trainings(folder: tuple[Path, Finished], tmp_path: Path) -> None:
    path = tmp_path / "benchmark-quantizers.jsonl"
    text = (folder[0] / path.name).read_text()
    path.write_text(text)
    words = (*TINY, "--contestants", "vq", "--output", tmp_path)
    assert_refused(
        run_script("benchmark", *words, "--steps", 3, code=None), "steps 2", " 3", path, "--output"
    )
    limit = run_script("benchmark", *words, "--data.limit", 41, code=None)
    assert_refused(limit, "data.limit 40", " 41", "--output")
    assert path.read_text() == text
    path.write_text(text.replace('"beta": 0.25', '"beta": 0.5'))
    assert_refused(run_script("benchmark", *words, code=None), "vq was trained as", "another --output")


def test_a_diverged_training_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bake_off, "tokenizer_step", lambda *_: torch.tensor(math.nan))
    done = run_script("benchmark", *TINY, "--contestants", "rvq", "--output", tmp_path, code=None)
    assert_refused(done, "rvq, seed 0: the loss is nan at step 2", "--contestants")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--contestants", "nope"), ("unknown 'nope'", "vq-simvq", "diffusers-vq")),
        (("--contestants", "gaussian"), ("gaussian: it has no codes",)),
        (("--bits", "4"), ("bits is 4",)),
        (("--bits", "9", "9"), ("expected different",)),
        (("--seeds", "0"), ("seeds is 0",)),
    ],
)
def test_wrong_words_are_named(words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_refused(run_script("benchmark", *TINY, *words, code=None), *parts)


def test_data_must_hold_something_out(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    words = (*TINY, "--data.path", tmp_path, "--data.valid-fraction", 0)
    assert_refused(run_script("benchmark", *words, code=None), tmp_path, "nothing is held out")


def test_the_memory_of_a_step_is_that_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    if not bottleneck_memory.available():
        pytest.skip("only Linux forgets a process's peak")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    # 4096 vectors and 4096 entries: a matrix of distances would take 64 MiB.
    assert 0.1 < bottleneck_memory.bottleneck_memory("vq", 12, 8, 64, (8, 8)) < 40
    with pytest.raises(ValueError, match=r"growth_of_a_step\('nope', 9, 8, 2, .*exit code 1"):
        bottleneck_memory.bottleneck_memory("nope", 9, 8, 2, (2, 2))


def test_sizes_get_a_panel_each_and_names_do_not_overlap(tmp_path: Path) -> None:
    def row(name: str, bits: int, value: float) -> dict[str, object]:
        at = {"mean": value, "low": value - 0.1, "high": value + 0.1}
        both = {"psnr": at, "bits_per_position": at}
        return {"contestant": name, "peer": name == "b", "bits": bits, "seeds": 3, **both}

    plot([row(name, bits, v) for bits in (9, 12) for name, v in (("a", 8.0), ("b", 8.5))], tmp_path / "2.png")
    plot([row("a", 9, 8.0)], tmp_path / "1.png")
    assert size_of(tmp_path / "2.png")[0] == pytest.approx(2 * size_of(tmp_path / "1.png")[0], abs=2)
    assert spaced([0.1, 0.5], 0.25) == [0.1, 0.5]
    assert spaced([0.1, 0.2, 0.9, 0.9], 0.25) == pytest.approx([0.1, 0.35, 0.75, 1.0])


def test_a_spread_shows_mean_least_and_greatest() -> None:
    assert over_seeds([1.0, 2.0, 6.0]) == OverSeeds(3.0, 1.0, 6.0)
    assert over_seeds([1.0, 2.0, 6.0]).shown("{:.1f}") == "3.0 (1.0..6.0)"
    assert OverSeeds(1.0, 0.999, 1.001).shown("{:.1%}") == "100.0% (99.9%..100.1%)"
    assert OverSeeds(1.0, 0.999, 1.001).shown("{:.1f}") == "1.0"


def test_a_vae_without_codes_is_no_contestant() -> None:
    assert not any(c.config.kind == "gaussian" for c in contestants(9, 8)[0])
