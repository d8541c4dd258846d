"""Two processes, also started by accelerate's own launcher: the same result as one, and no hang on a mistake.

Left out: GPUs; the processes share the CPU and talk through gloo.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipelines import train_tokenizer
from pipelines.benchmarks.data.made import picture_table
from pipelines.data.pictures import PICTURES
from pipelines.tokens.items import read_tokens
from tests.helpers.collectives import Collective, Told
from tests.helpers.launching import IN_ONE_LAUNCH, launch
from tests.helpers.running import (
    ROOT,
    TINY_PRIOR,
    TINY_TOKENIZER,
    Script,
    names_in,
    without_plots,
)
from tests.helpers.warm import run_ranks
from tests.helpers.whole_runs import rows_of
from tokenizer.distributed import Step

# k-means after the second of three steps; a batch of 16 is 8 for each process.
TRAIN = ("emoji", *TINY_TOKENIZER, "--max-steps", 3, "--keep-checkpoints", 1, "--tracker", "none")
DECODER = (
    *("pictures", "--batch-size", 16, "--data.limit", 32, "--max-steps", 3, "--log-every", 1),
    *("--adversarial.width", 4, "--adversarial.start", 1, "--adversarial.balance"),
    *("--adversarial.weight", 0.1, "--adversarial.smoothness", 10, "--optimizer", "adamw"),
    *("--warmup-steps", 2, "--tracker", "none"),
)
ENCODE = ("--data.limit", 33, "--batch-size", 7, "--views", 2, "--augment.flip", "--augment.shift", 1)
# Views of a shard, of which an item has two: five shards of each split.
BLOCK = 16
SEVERAL = f"""{IN_ONE_LAUNCH}
from pathlib import Path
from pipelines import train_tokenizer
from pipelines.data.pictures import PICTURES

sys.path.insert(0, {str(ROOT)!r})
from tests.helpers.collectives import RecordedCollectives
from tests.processes.test_two_processes import spoilt

PICTURES.block = int(sys.argv[2])
train_tokenizer.losses_of = spoilt(train_tokenizer.losses_of)
for name, *words in json.loads(sys.argv[1]):
    with RecordedCollectives() as recorded:
        run(name, [word.replace("PROCESS", os.environ["RANK"]) for word in words])
    if "--eval-every" in words:
        folder = Path(words[words.index("--output") + 1])
        (folder / f"collectives-{{os.environ['RANK']}}.json").write_text(json.dumps(recorded.found))
leave_group()
"""
# With an evaluation and a checkpoint within the run, and not only at its end.
ON_THE_WAY = ("--eval-every", 2, "--checkpoint-every", 2)


def spoilt(losses_of: Any) -> Any:
    """`losses_of` of a batch whose last example has a z_e that is not finite in step 2, if that may be left
    out."""

    def forward(net: nn.Module, rows: slice, step: Step | None, **given: Any) -> Any:
        if step is None or not step.optional or step.index != 1 or step.offset + len(given["x"]) < step.total:
            return losses_of(net, rows, step, **given)
        encoder = getattr(net, "module", net).encoder
        hook = encoder.register_forward_hook(lambda *of: of[-1].index_fill(0, torch.tensor(7), torch.nan))
        try:
            return losses_of(net, rows, step, **given)
        finally:
            hook.remove()

    return forward


@pytest.fixture(scope="module")
def one(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer trained by one process."""
    folder = tmp_path_factory.mktemp("processes") / "one"
    with without_plots():
        script("train_tokenizer", *TRAIN, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, trained by two."""
    folder = tmp_path_factory.mktemp("processes") / "two"
    launch("-m", "pipelines.train_tokenizer", *TRAIN, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def alone(one: Path, script: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens that one process made."""
    folder = tmp_path_factory.mktemp("alone") / "tokens"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PICTURES, "block", BLOCK)
        script("encode_dataset", "--tokenizer", one, "--output", folder, *ENCODE)
    return folder


def interrupted(tokens: Path, folder: Path) -> Path:
    """A copy of an encoding as it may be left by one that was killed: three shards missing, one cut short."""
    shutil.copytree(tokens, folder)
    for name in ("tokens.json", *(f"train-0000{i}-of-00005.parquet" for i in (0, 3, 4))):
        (folder / name).unlink()
    broken = folder / "held_out-00002-of-00005.parquet"
    broken.write_bytes(broken.read_bytes()[:-10])
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_in(folder)}


@dataclass(frozen=True)
class More:
    """What two processes did, and said together."""

    folder: Path
    prior_words: tuple[object, ...]
    out: str
    err: str


@pytest.fixture(scope="module")
def more(
    one: Path,
    alone: Path,
    tiny_tokenizer: Path,
    tiny_tokens: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> More:
    """Encoding, the rest of an encoding, another encoding in its folder, a prior; tokenizers in a folder that
    holds one, and to be pushed to what is no repository; and last what is not the same on two machines."""
    folder = tmp_path_factory.mktemp("more")
    links = {"tokenizer": (one, tiny_tokenizer), "tokens": (alone, tiny_tokens)}
    for name, targets in links.items():
        for process, target in enumerate(targets):
            (folder / f"{name}-{process}").symlink_to(target)
    for process in (0, 1):
        picture_table(folder / f"pictures-{process}", 40 + process)
    picture_table(folder / "here-0", 40)
    shutil.copytree(one / "checkpoints", folder / "unshared-0" / "checkpoints")
    prior = ("small", *TINY_PRIOR, "--tokens", tiny_tokens, "--max-steps", 3, "--tracker", "none")
    prior += ("--model.order", "any")  # which draws orders for the whole batch
    prior += ("--model.dropout", 0)  # the one noise that differs between processes
    encode = ("encode_dataset", "--tokenizer", one, *ENCODE, "--output")
    scripts = [
        (*encode, folder / "tokens"),
        (*encode, interrupted(alone, folder / "rest")),
        (*encode, interrupted(alone, folder / "other"), "--seed", 1),
        ("train_prior", *prior, *ON_THE_WAY, "--output", folder / "prior"),
        ("train_tokenizer", *TRAIN, "--output", one),
        ("train_tokenizer", *TRAIN, "--output", folder / "pushed", "--push-to-hub", "nobody"),
        ("train_tokenizer", *TRAIN, "--output", folder / "other-options", "--log-every", "1PROCESS"),
        (
            "train_tokenizer",
            *TRAIN,
            "--output",
            folder / "other-data",
            "--data.path",
            folder / "pictures-PROCESS",
        ),
        ("train_tokenizer", *TRAIN, "--output", folder / "missing", "--data.path", folder / "here-PROCESS"),
        ("train_tokenizer", *TRAIN, "--output", folder / "unshared-PROCESS", "--resume", "latest"),
        ("train_prior", *prior, "--output", folder / "other-prior", "--tokens", folder / "tokens-PROCESS"),
        ("encode_dataset", "--tokenizer", folder / "tokenizer-PROCESS", "--output", folder / "other-tokens"),
        ("train_tokenizer", *TRAIN, *ON_THE_WAY, "--output", folder / "left-out", "--skip-non-finite", 1),
        ("train_decoder", *DECODER, "--tokenizer", one, "--output", folder / "decoder"),
        ("sample", "--prior", folder / "prior", "--output", folder / "samples"),
    ]
    words = json.dumps([[str(word) for word in script] for script in scripts])
    ranks = run_ranks(2, "-c", SEVERAL, words, BLOCK)
    assert [rank.code for rank in ranks] == [0, 0], ranks
    return More(folder, prior, "".join(rank.out for rank in ranks), "".join(rank.err for rank in ranks))


def test_two_processes_really_ran(two: Path) -> None:
    assert json.loads((two / "checkpoints" / "step-3" / "state.json").read_text())["processes"] == 2
    noise = load_file(two / "checkpoints" / "step-3" / "rng.safetensors")
    assert {key.split(".")[0] for key in noise} == {"0", "1"}
    assert "--num_processes 2" in (two / "README.md").read_text()  # the card's command


def test_two_processes_learn_what_one_learns(one: Path, two: Path) -> None:
    expected, found = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert bool(found["bottleneck.codebook.started"])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_two_processes_log_once_and_the_same(one: Path, two: Path) -> None:
    assert [row["step"] for row in rows_of(two)] == [row["step"] for row in rows_of(one)] == [1, 2, 3, 3]
    for expected, found in zip(rows_of(one), rows_of(two), strict=True):
        assert found == {key: pytest.approx(value, abs=1e-3, rel=1e-3) for key, value in expected.items()}


def test_two_processes_encode_the_same_shards(more: More, alone: Path) -> None:
    names = {f"{split}-0000{i}-of-00005.parquet" for split in ("train", "held_out") for i in range(5)}
    assert names_in(alone) == {"tokens.json", "encoding.json", *names}
    assert files(more.folder / "tokens") == files(alone)
    info, splits = read_tokens(alone)
    assert len(splits["train"]) == len(splits["held_out"]) == 33 and info.views == 2
    assert {len(pq.read_table(alone / name)) for name in names} == {16, 8, 2, 1}


def test_an_encoding_continues_on_another_number_of_processes(
    more: More, alone: Path, one: Path, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files(more.folder / "rest") == files(alone)
    assert "6 of 10 shards are there" in more.err
    assert "held_out-00002-of-00005.parquet is not whole" in more.err
    monkeypatch.setattr(PICTURES, "block", BLOCK)
    folder = interrupted(more.folder / "tokens", tmp_path / "rest")
    script("encode_dataset", "--tokenizer", one, "--output", folder, *ENCODE)
    assert files(folder) == files(alone)


def test_another_encoding_is_refused_by_both(more: More) -> None:
    for process in ("", " (process 1)"):
        assert f"Error{process}: {more.folder / 'other'} holds a part of another encoding" in more.err


def test_two_processes_train_the_prior_that_one_trains(more: More, script: Script, tmp_path: Path) -> None:
    with without_plots():
        script("train_prior", *more.prior_words, "--output", tmp_path)
    state = json.loads((more.folder / "prior" / "checkpoints" / "step-3" / "state.json").read_text())
    assert state["processes"] == 2
    expected = load_file(tmp_path / "model.safetensors")
    found = load_file(more.folder / "prior" / "model.safetensors")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def gradients_of_discriminators(folder: Path) -> torch.Tensor:
    """The averages of the gradients of all their weights that the last checkpoint holds."""
    held = load_file(folder / "checkpoints" / "step-3" / "optimizers.safetensors")
    names = sorted(name for name in held if name.startswith("1.") and name.endswith(".exp_avg"))
    assert names and {name.split(".")[0] for name in held} == {"0", "1"}
    return torch.cat([held[name].flatten() for name in names])


def test_two_processes_sharpen_the_decoder_that_one_sharpens(
    more: More, one: Path, script: Script, tmp_path: Path
) -> None:
    with without_plots():
        script("train_decoder", *DECODER, "--tokenizer", one, "--output", tmp_path)
    folders = (tmp_path, more.folder / "decoder")
    expected, found = (load_file(folder / "model.safetensors") for folder in folders)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    # Not by their weights: where a gradient is nearly 0, Adam's first steps follow its rounding.
    first, second = (gradients_of_discriminators(folder) for folder in folders)
    assert (first - second).norm() < 0.01 * first.norm()
    accuracies = [
        [row["train/discriminator_accuracy"] for row in rows_of(folder) if "train/loss" in row]
        for folder in folders
    ]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


def test_a_step_that_one_process_cannot_take_is_left_out_by_both(
    more: More, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "step 2: the loss commitment, " in more.err and "left out" in more.err
    assert rows_of(more.folder / "left-out")[-1]["step"] == 3
    monkeypatch.setattr(train_tokenizer, "losses_of", spoilt(train_tokenizer.losses_of))
    with without_plots():
        script("train_tokenizer", *TRAIN, "--output", tmp_path, "--skip-non-finite", 1)
    expected = load_file(tmp_path / "model.safetensors")
    found = load_file(more.folder / "left-out" / "model.safetensors")
    assert bool(found["bottleneck.codebook.started"])  # by its vectors of steps 1 and 3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["left-out", "prior"])
def test_both_processes_say_the_same_things_in_the_same_order(more: More, name: str) -> None:
    ours, theirs = (json.loads((more.folder / name / f"collectives-{n}.json").read_text()) for n in (0, 1))
    assert ours == theirs
    said = [Collective(name, group, [Told(*tensor) for tensor in told]) for name, group, told in ours]
    assert all(tensor.contiguous and tensor.device == "cpu" for one in said for tensor in one.tensors)
    counts = Counter(one.name for one in said)
    assert counts.keys() >= {"c10d::allreduce_", "c10d::broadcast_", "c10d::allgather_", "c10d::barrier"}
    # Of 3 steps: the gradient's, and with a codebook its statistics and picked vectors.
    assert counts["c10d::allreduce_"] >= 3 * (1 if name == "prior" else 3)


def test_a_mistake_that_only_the_main_process_sees_ends_both(more: More, one: Path) -> None:
    for message in (f"{one} already holds a run", "--push-to-hub 'nobody': cannot be pushed to"):
        assert f"Error: {message}" in more.err
        assert f"Error (process 1): {message}" in more.err
    assert not (more.folder / "pushed").exists()


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("--log-every is 10 in process 0 and 11 in process 1", "other-options"),
        ("the data are not the same on all 2 processes", "other-data"),
        ("the tokens are not the same on all 2 processes", "other-prior"),
        ("the tokenizer's weights are not the same on all 2 processes", "other-tokens"),
        ("here-1: no such file or folder", "missing"),
        ("processes find different checkpoints (step-3, none)", "unshared-1"),
    ],
)
def test_what_differs_between_machines_is_told_by_both(more: More, what: str, name: str) -> None:
    told = [line for line in more.err.splitlines() if what in line]
    assert sorted(line.split(":")[0] for line in told) == ["Error", "Error (process 1)"]
    assert not (more.folder / name).exists()


def test_mistakes_end_both_processes(more: More) -> None:
    ends = Counter(more.out.splitlines())
    assert ends == {
        "encode_dataset ended with 2": 4,
        "train_tokenizer ended with 2": 12,
        "train_prior ended with 2": 2,
        "sample ended with 2": 2,
    }


def test_several_processes_do_not_draw_the_same_samples(more: More) -> None:
    for who in ("Error", "Error (process 1)"):
        assert f"{who}: samples are drawn by one process" in more.err
    assert "start it by python pipelines/sample.py" in more.err
    assert not (more.folder / "samples").exists()
