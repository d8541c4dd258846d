"""What checkpoints do on GPUs and leave undone on CPUs, as far as it shows without a GPU.

Left out: checkpoints themselves (test_checkpoints.py).
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines import train_tokenizer
from pipelines.training.averaging import WeightAverage
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.setup import deterministic, seed_layers
from tests.helpers.running import TINY_TOKENIZER, Script, assert_refused
from tests.helpers.warm import run_ranks


def no_gpu(*_: object) -> Tensor:
    raise AssertionError("a run on CPUs asked a GPU")


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def checkpoints_of(accelerator: Accelerator, folder: Path) -> Checkpoints:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    optimizers = [torch.optim.AdamW(model.parameters())]
    return Checkpoints(accelerator, folder, model, average, optimizers, keep=2, seed=5)


def on_gpu(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator.state, "device", torch.device("cuda"))


def test_a_run_on_cpus_opens_no_gpu(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = checkpoints_of(accelerator, tmp_path)
    for name in ("get_rng_state", "set_rng_state", "init"):
        monkeypatch.setattr(torch.cuda, name, no_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    checkpoints.save(3)
    torch.manual_seed(1)
    state = checkpoints.resume("latest")
    assert state is not None and state.step == 3


def test_a_checkpoint_of_cpus_gives_a_gpu_a_generator_of_the_step(
    accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoints = checkpoints_of(accelerator, tmp_path)
    checkpoints.save(3)
    seed_layers(5, 3, 0)
    expected = torch.initial_seed()
    torch.manual_seed(1)
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        on_gpu(accelerator, patch)
        patch.setattr(torch.cuda, "set_rng_state", no_gpu)
        assert checkpoints.resume("latest") is not None
    assert torch.initial_seed() == expected and "layer dropout" in caplog.text


def test_a_gpu_goes_on_with_its_own_generator(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, taken = torch.arange(16, dtype=torch.uint8), list[Tensor]()
    checkpoints, drawn = checkpoints_of(accelerator, tmp_path), torch.get_rng_state()
    with monkeypatch.context() as patch:
        on_gpu(accelerator, patch)
        patch.setattr(torch.cuda, "get_rng_state", lambda: given)
        patch.setattr(torch.cuda, "set_rng_state", taken.append)
        checkpoints.save(3)
        torch.manual_seed(1)
        checkpoints.resume("latest")
    assert len(taken) == 1 and torch.equal(taken[0], given) and torch.equal(torch.get_rng_state(), drawn)
    taken.clear()
    assert checkpoints.resume("latest") is not None and not taken  # on CPUs, which do not need it


# How many gathered tensors live at once in a process that keeps none, and what it and the main one get.
GATHERED = """
import weakref
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from pipelines.run.command_line import leave_group
from pipelines.training.sharding import whole_tensors

dist.init_process_group("gloo")
mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
whole = {f"w{i}": torch.arange(8.0) + i for i in range(5)}
state = {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in whole.items()}
gather, living, most = DTensor.full_tensor, weakref.WeakSet(), []

def counted(self):
    most.append(len(living))
    living.add(value := gather(self))
    return value

DTensor.full_tensor = counted
found = whole_tensors({**state, "plain": torch.ones(2)}, keep=rank == 0)
if rank:
    print(found, max(most))
else:
    same = all(torch.equal(found[name], value) for name, value in whole.items())
    print(sorted(found), same, len(most))
leave_group()
"""


def test_sharded_tensors_are_gathered_one_at_a_time_and_kept_by_one_process() -> None:
    main, other = run_ranks(2, "-c", GATHERED)
    assert main.out.strip() == "['plain', 'w0', 'w1', 'w2', 'w3', 'w4'] True 5", main
    assert other.out.strip() == "{} 0", other


def flags() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark


def test_a_deterministic_run_takes_operations_of_that_form_alone(
    script: Script, no_plots: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # which is undone
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen, losses_of = list[tuple[bool, bool]](), train_tokenizer.losses_of

    def noted(*arguments: Any, **options: Any) -> Any:
        seen.append(flags())
        return losses_of(*arguments, **options)

    monkeypatch.setattr(train_tokenizer, "losses_of", noted)
    words = ("emoji", *TINY_TOKENIZER, "--max-steps", 1, "--tracker", "none", "--deterministic")
    script("train_tokenizer", *words, "--output", tmp_path / "run")
    assert seen == [(True, False)] and flags() == (False, True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_an_operation_without_a_deterministic_form_is_named(
    script: Script, no_plots: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses_of(*_: Any, **__: Any) -> Any:
        pooled, places = F.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
        return F.max_unpool2d(pooled, places, 2)

    monkeypatch.setattr(train_tokenizer, "losses_of", losses_of)
    words = ("emoji", *TINY_TOKENIZER, "--max-steps", 1, "--tracker", "none", "--deterministic")
    finished = script("train_tokenizer", *words, "--output", tmp_path / "run", code=2)
    assert_refused(finished, "--deterministic: max_unpooling2d", "leave it out")
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="other"), deterministic(True):
        raise RuntimeError("other")
