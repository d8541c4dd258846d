"""Models that tests of files and of the Hub save: the smallest there is, and a tiny one of each package.

Left out: tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from prior import Prior, PriorConfig
from tests.helpers import tiny
from tokenizer.hub.model import CardInfo, HubModel

CARD = CardInfo(
    title="A tiny tokenizer",
    license="mit",
    datasets=("user/pictures",),
    command="accelerate launch pipelines/train_tokenizer.py --seed 1",
    metrics={"psnr": 25.123456789, "l1": 0.5},
    notes="Only a test.",
)
BOTH: dict[str, Callable[[], HubModel]] = {
    "tokenizer": tiny.tokenizer,
    "prior": lambda: Prior(PriorConfig(dim=8, heads=1, depth=1, grid=(2, 2))),
}


@dataclass(frozen=True)
class ScaleConfig:
    size: int = 3
    bias: bool = True


class Scale(HubModel):
    """The smallest model that can be saved."""

    model_type = "test-scale"
    config_class = ScaleConfig

    def __init__(self, config: ScaleConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.arange(1.0, config.size + 1))
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("steps", torch.tensor(7))
        if config.bias:
            self.bias = nn.Parameter(torch.zeros(config.size))


@pytest.fixture(name="model", params=BOTH)
def model_of_a_package(request: pytest.FixtureRequest) -> HubModel:
    return BOTH[request.param]()


@pytest.fixture(name="saved")
def saved_model(tmp_path: Path) -> Path:
    return Scale(ScaleConfig()).save_pretrained(tmp_path / "model")


def assert_same(one: HubModel, other: HubModel) -> None:
    assert type(one) is type(other) and one.config == other.config
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
