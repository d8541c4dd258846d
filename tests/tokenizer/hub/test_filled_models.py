"""Loading builds a model once and fills it; what no file holds is as the constructor makes it.

Left out: files that do not fit (test_strict_loading.py), and models that do harm (robustness/).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.benchmarks.process_memory import MIB, peak
from pipelines.run.own_process import in_own_process
from prior import Prior, PriorConfig
from tests.helpers.decoders import DEPTH, random_prior
from tests.helpers.decoders import VARIANTS as PRIORS
from tests.helpers.savable import Scale, ScaleConfig
from tests.helpers.tiny import VARIANTS, codec, tokenizer
from tokenizer import Tokenizer
from tokenizer.bottlenecks import kinds
from tokenizer.hub.model import HubModel

MODELS: dict[str, Callable[[], HubModel]] = {
    **{kind: lambda kind=kind: tokenizer(kind) for kind in [*kinds(), *VARIANTS]},
    "codec": codec,
    **{f"prior {i}": lambda config=c: random_prior(config) for i, c in enumerate([*PRIORS, DEPTH])},
}


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a model, those that are no buffers too."""
    for name, module in model.named_modules():
        for table in (module._parameters, module._buffers, vars(module)):
            yield from ((f"{name}.{k}", v) for k, v in table.items() if isinstance(v, Tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_not_saved_is_as_the_constructor_makes_it(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = MODELS[name]().to(dtype)
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    state, fresh = model.state_dict(), dict(tensors(type(model)(model.config).to(dtype)))
    found = dict(tensors(loaded))
    assert found.keys() == fresh.keys()
    for key, value in found.items():
        expected = state.get(key.removeprefix("."), fresh[key])
        assert value.dtype == expected.dtype and torch.equal(value, expected), key
        assert value.requires_grad == fresh[key].requires_grad, key
        assert value.stride() == fresh[key].stride(), key
        assert value.data_ptr() % 16 == 0 or value.numel() < 2, key
    places = [value.untyped_storage().data_ptr() for _, value in loaded.named_parameters() if value.numel()]
    assert len(set(places)) == len(places)  # nothing holds the whole file


def test_a_model_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer().save_pretrained(tmp_path)
    devices: list[str] = []
    build = Tokenizer.__init__

    def counted(self: Tokenizer, config: Any) -> None:
        devices.append(torch.get_default_device().type)
        build(self, config)

    monkeypatch.setattr(Tokenizer, "__init__", counted)
    Tokenizer.from_pretrained(tmp_path)
    assert devices == ["meta"]


def test_the_default_device_is_heeded(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    raw = Tokenizer.check_extra_config
    Tokenizer.check_extra_config = lambda *_: None  # type: ignore[method-assign]
    try:
        with torch.device("meta"):
            loaded = Tokenizer.from_pretrained(tmp_path)
    finally:
        Tokenizer.check_extra_config = raw  # type: ignore[method-assign]
    assert all(value.is_meta for value in loaded.state_dict().values())
    assert all(value.is_meta for value in loaded.buffers())


def test_a_table_that_nothing_makes_is_named(tmp_path: Path) -> None:
    class Forgetful(Scale):
        def __init__(self, config: ScaleConfig) -> None:
            super().__init__(config)
            self.register_buffer("table", torch.arange(3), persistent=False)

    Forgetful(ScaleConfig()).save_pretrained(tmp_path)
    with pytest.raises(AssertionError, match=r"\['table'\].*make_unsaved"):
        Forgetful.from_pretrained(tmp_path)


def growth(folder: str) -> float:
    """By how many times the size of its weights this process grows at most when it loads a prior."""
    size = Path(folder, "model.safetensors").stat().st_size
    Prior.from_pretrained(Path(folder, "small"))
    before = peak()
    Prior.from_pretrained(folder)
    return (peak() - before) / size


def test_loading_takes_the_memory_of_the_weights_once(tmp_path: Path) -> None:
    Prior(PriorConfig(dim=256, depth=16, grid=(2, 2))).save_pretrained(tmp_path)
    Prior(PriorConfig(dim=8, heads=1, depth=1, grid=(2, 2))).save_pretrained(tmp_path / "small")
    assert (tmp_path / "model.safetensors").stat().st_size > 40 * MIB
    assert 0.8 < in_own_process(growth, str(tmp_path)) < 1.3
