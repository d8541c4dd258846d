"""No operation of a training's own parts mixes devices: steps of both optimizers, averages of weights, states
of optimizers, and what is put back, on a GPU that is not there.

Left out: the models (tokenizer/test_devices.py, prior/test_devices.py), and accelerate.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from pipelines.training import optimizer_state
from pipelines.training.averaging import WeightAverage
from pipelines.training.optimizer_state import load_optimizers, optimizer_tensors
from pipelines.training.optimizers import build_optimizers
from pipelines.training.setup import put_back
from pipelines.training.sharding import whole_tensors
from tests.helpers.gpu import GPU, on_gpu, pretended_gpu, values_of
from tests.helpers.tiny import bottleneck_config, image_config, pictures
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.distributed import Step


def resume(optimizers: list[Optimizer]) -> None:
    """Take over their own states as those of a checkpoint, which are on the CPU."""
    states = {name: value.detach().to("cpu") for name, value in optimizer_tensors(optimizers).items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer_state, "load_tensors", lambda *_, **__: states)
        load_optimizers(optimizers, Path("optimizers.safetensors"))


def trained(gpu: GPU | None) -> dict[str, Any]:
    """What some steps of a training leave: of both optimizers, an average, and a step that is taken back."""
    torch.manual_seed(0)
    config = image_config(widths=(24, 24), blocks=(1, 0))  # wide enough for Muon
    # Made here, and moved.
    with torch.utils._python_dispatch._disable_current_modes():
        tok = Tokenizer(TokenizerConfig(config, bottleneck_config("vq"), {"l2": 1.0})).train()
        data = [pictures(8, 3, 16, 16, seed=index) for index in range(3)]
    if gpu is not None:
        gpu.module(tok)
        data = [gpu.tensor(x) for x in data]
    optimizers = build_optimizers(tok, "muon", 1e-3, 1e-2, 0.1)
    average = WeightAverage(tok, 0.99)
    for index, x in enumerate(data):
        undo = put_back(tok)
        output = tok(x, Step(0, index, 0, 8))
        sum(output.losses.values()).backward()
        norm = torch.nn.utils.clip_grad_norm_(tok.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update(tok, index + 1)
        if index == 1:
            undo()
            resume(optimizers)
    states = optimizer_tensors(optimizers)
    left = {"model": tok.state_dict(), "average": average.shadow, "states": states, "norm": norm}
    if gpu is not None:
        assert on_gpu(left)
        assert all(value.device.type == "cpu" for value in whole_tensors(tok.state_dict()).values())
        average.load({name: value.to("cpu") for name, value in average.shadow.items()})
        assert on_gpu(average.shadow, tok.bottleneck.training_state())
    return left


def test_a_training_stays_on_its_gpu() -> None:
    expected = trained(None)
    with pretended_gpu() as gpu:
        found = values_of(trained(gpu))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, check_stride=False)
