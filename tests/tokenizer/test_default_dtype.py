"""Models come back in the type that they were saved in, whatever torch's default type is by then."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prior import Prior
from tests.helpers.priors import PICTURE
from tests.helpers.tiny import codec, tokenizer
from tokenizer.hub.model import HubModel


def prior() -> Prior:
    torch.manual_seed(0)
    return Prior(PICTURE)


@pytest.mark.parametrize("saved", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("make", [tokenizer, codec, prior])
def test_the_default_type_decides_nothing(
    make: Callable[[], HubModel], default: torch.dtype, saved: torch.dtype, tmp_path: Path
) -> None:
    model = make().to(saved)
    model.save_pretrained(tmp_path)
    try:
        torch.set_default_dtype(default)
        loaded = type(model).from_pretrained(tmp_path)
        assert torch.get_default_dtype() == default
        with pytest.raises(ValueError, match=r"config\.json"):
            type(model).from_pretrained(tmp_path / "..")
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == value.dtype and torch.equal(found, value), name
    for (name, value), (_, found) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
        assert found.dtype == value.dtype, name
