"""Configs: their strict way to JSON and back, and the registry of variants.

Left out: the bounds of single configs, which stand in the tests of what they configure.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from prior import PriorConfig
from tokenizer import TokenizerConfig
from tokenizer.bottlenecks import kinds
from tokenizer.bottlenecks.gaussian import GaussianConfig
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.modalities import ModalityConfig
from tokenizer.modalities.image import ImageConfig
from tokenizer.variants import Variant, changed_fields, config_from_dict, config_to_dict, require


class Shape(Variant):
    """A family of its own, so that no test touches the real registries."""


@dataclass(frozen=True)
class Square(Shape, kind="square"):
    side: float = 1.0


@dataclass(frozen=True)
class Polygon(Shape, kind="polygon"):
    corners: tuple[tuple[float, float], ...] = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))


@dataclass(frozen=True)
class Everything:
    name: str = "a"
    count: int = 3
    ratio: float = 0.5
    on: bool = True
    mode: Literal["fast", "exact"] = "exact"
    maybe: int | None = None
    size: tuple[int, int] = (2, 3)
    many: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    path: Path = Path("here")
    maybe_path: Path | None = None
    shape: Shape = field(default_factory=Square)

    def __post_init__(self) -> None:
        require(self.count >= 0, f"count is {self.count}, expected 0 or more")


def round_trip(config: Any, cls: type) -> Any:
    # Paths are left to whoever writes the file.
    return config_from_dict(cls, json.loads(json.dumps(config_to_dict(config), default=str)))


@pytest.mark.parametrize(
    ("config", "cls"),
    [
        (Everything(maybe=4, many=("x", "y"), weights={"l1": 0.5}, shape=Polygon()), Everything),
        (TokenizerConfig(), TokenizerConfig),
        (
            TokenizerConfig(
                ImageConfig(channels=1, size=(28, 20), strides=(4,), widths=(8,), blocks=(0,), output="tanh"),
                GaussianConfig(dim=7, kl_weight=0.1),
                {"bernoulli": 1.0},
            ),
            TokenizerConfig,
        ),
        (TokenizerConfig(bottleneck=VQConfig(codebook_size=3, decay=0.5)), TokenizerConfig),
        (PriorConfig(grid=(4,), class_names=("a", "b"), tokenizer_id="user/tok"), PriorConfig),
    ],
)
def test_configs_survive_json(config: Any, cls: type) -> None:
    again = round_trip(config, cls)
    assert again == config and type(again) is type(config)


def test_paths_are_read_from_strings() -> None:
    again = config_from_dict(Everything, {"path": "a/b", "maybe_path": "c"})
    assert again.path == Path("a/b") and again.maybe_path == Path("c")
    assert config_from_dict(Everything, {"maybe_path": None}).maybe_path is None


def test_json_form_is_plain() -> None:
    config = Everything(many=("x",), shape=Polygon(corners=((1.0, 2.0),)))
    values = config_to_dict(config)
    assert values["shape"] == {"kind": "polygon", "corners": [[1.0, 2.0]]}
    assert values["size"] == [2, 3] and values["many"] == ["x"] and values["maybe"] is None
    assert list(values)[:3] == ["name", "count", "ratio"]


def test_missing_keys_take_defaults() -> None:
    assert config_from_dict(Everything, {}) == Everything()
    assert config_from_dict(Everything, {"shape": {"kind": "polygon"}}).shape == Polygon()
    old = config_to_dict(TokenizerConfig())
    del old["bottleneck"]["beta"], old["losses"], old["modality"]
    assert config_from_dict(TokenizerConfig, old) == TokenizerConfig()


def test_whole_numbers_are_floats_where_floats_are_asked() -> None:
    config = config_from_dict(Everything, {"ratio": 2, "weights": {"a": 1}})
    assert type(config.ratio) is float and config.ratio == 2.0
    assert type(config.weights["a"]) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nmae": "b"}, r"config: unknown key 'nmae'; known: count, "),
        ({"kind": "x"}, r"config: unknown key 'kind'"),
        ({"shape": {"kind": "square", "corners": []}}, r"config.shape: unknown key 'corners'; known: side"),
        ({"shape": {"kind": "circle"}}, r"config.shape.kind: unknown 'circle'; known: polygon, square"),
        ({"shape": {"side": 1.0}}, r"config.shape.kind: unknown None"),
        ({"shape": "square"}, r"config.shape: expected an object, got 'square'"),
        ({"name": 3}, r"config.name: expected str, got 3"),
        ({"count": 3.0}, r"config.count: expected int, got 3.0"),
        ({"count": True}, r"config.count: expected int, got True"),
        ({"count": "3"}, r"config.count: expected int, got '3'"),
        ({"count": None}, r"config.count: expected int, got None"),
        ({"ratio": "0.5"}, r"config.ratio: expected float, got '0.5'"),
        ({"ratio": True}, r"config.ratio: expected float, got True"),
        ({"on": 1}, r"config.on: expected bool, got 1"),
        ({"mode": "slow"}, r"config.mode: expected .*, got 'slow'"),
        ({"maybe": "4"}, r"config.maybe: expected int, got '4'"),
        ({"size": [1]}, r"config.size: expected .*, got \[1\]"),
        ({"size": [1, 2, 3]}, r"config.size: expected"),
        ({"size": [1, 2.5]}, r"config.size\[1\]: expected int, got 2.5"),
        ({"size": 4}, r"config.size: expected .*, got 4"),
        ({"many": "xy"}, r"config.many: expected .*, got 'xy'"),
        ({"many": ["x", 1]}, r"config.many\[1\]: expected str, got 1"),
        ({"weights": {"l1": "1"}}, r"config.weights.l1: expected float, got '1'"),
        ({"weights": [1]}, r"config.weights: expected"),
        ({"path": 3}, r"config.path: expected Path, got 3"),
        ({"shape": {"kind": "polygon", "corners": [[0, 0], [1]]}}, r"config.shape.corners\[1\]: expected"),
        ({"count": -1}, r"count is -1, expected 0 or more"),
        ([], r"config: expected an object, got \[\]"),
        (None, r"config: expected an object, got None"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(Everything, values)


def test_a_wrong_choice_is_told_the_choices() -> None:
    with pytest.raises(ValueError, match=r"fast.*exact"):
        config_from_dict(Everything, {"mode": "slow"})


@pytest.mark.parametrize(
    "values",
    [
        {"shape": {"kind": ["square"]}},
        {"ratio": 10**400},
    ],
)
def test_odd_json_is_refused_too(values: Any) -> None:
    with pytest.raises(ValueError, match="config"):
        config_from_dict(Everything, values)


def test_the_place_in_a_message_starts_where_the_caller_says() -> None:
    with pytest.raises(ValueError, match=r"^run\.json: model\.bottleneck\.dim: expected int, got 'x'"):
        config_from_dict(TokenizerConfig, {"bottleneck": {"kind": "vq", "dim": "x"}}, "run.json: model")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"losses": {"l3": 1.0}}, "unknown image loss 'l3'; known: .*l1"),
        ({"losses": {"l1": -1.0}}, "weight l1 .*not negative, got -1.0"),
        ({"losses": {"l1": 0.0}}, "weights .* 0; .*bernoulli, cauchy, l1, l2, ms_ssim"),
        ({"modality": {"kind": "image", "channels": 2}}, r"channels is 2, expected 1 \(grey\) or 3"),
        ({"modality": {"kind": "image", "strides": [3, 2]}}, r"strides are \(3, 2\)"),
        ({"modality": {"kind": "image", "widths": [8]}}, "one value per level, got 2, 1 and 2"),
        ({"modality": {"kind": "image", "size": [0, 8]}}, r"size is \(0, 8\)"),
        ({"modality": {"kind": "image", "widths": [8, 100000]}}, r"widths are \(8, 100000\)"),
        ({"modality": {"kind": "image", "blocks": [1, 65]}}, r"blocks are \(1, 65\)"),
        ({"modality": {"kind": "smell"}}, "config.modality.kind: unknown 'smell'; known: .*image"),
        ({"bottleneck": {"kind": "vq", "codebook_size": 0}}, r"codebook_size is 0, expected 1 to 2\^24"),
    ],
)
def test_a_tokenizers_config_checks_itself(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(TokenizerConfig, values)


def test_variants_know_their_family_only() -> None:
    assert Shape.variants == {"square": Square, "polygon": Polygon}
    assert Square.kind == "square" and Square.variants is Shape.variants
    assert "square" not in kinds() and "vq" in kinds() and "vq" not in ModalityConfig.variants
    assert kinds()["vq"] is VQConfig
    with pytest.raises(ValueError, match="there is already a variant named 'square'"):

        class Again(Shape, kind="square"):
            pass

    assert Shape.variants["square"] is Square


def test_a_member_is_read_through_its_family() -> None:
    assert config_from_dict(Shape, {"kind": "square", "side": 2}) == Square(2.0)
    with pytest.raises(ValueError, match=r"config.kind: unknown None"):
        config_from_dict(Shape, {"side": 2})


def test_changed_fields_are_those_without_their_default() -> None:
    assert changed_fields(VQConfig()) == {"kind": "vq"}
    assert changed_fields(VQConfig(codebook_size=24, distance="cosine")) == {
        "kind": "vq",
        "codebook_size": 24,
        "distance": "cosine",
    }
    # What only training reads does not count: a model whose file gives an older default still loads.
    assert changed_fields(VQConfig(revive_below=0.1, decay=0.5)) == {"kind": "vq"}
    config = TokenizerConfig(bottleneck=VQConfig(dim=9))
    assert changed_fields(config) == {"bottleneck": {"kind": "vq", "dim": 9}}
    # Another member of a family counts as changed even with all its defaults.
    assert changed_fields(TokenizerConfig(bottleneck=GaussianConfig())) == {
        "bottleneck": {"kind": "gaussian"}
    }


def test_what_only_training_reads_is_known_of_every_bottleneck() -> None:
    vq = {"gradient", "beta", "decay", "kmeans_steps", "revive_below"}
    bits = {"beta", "entropy_weight", "diversity", "temperature", "group_bits", "decay"}
    gaussian = {"kl_weight", "kl_warmup_steps"}
    expected = {
        "vq": vq,
        "rvq": {"dropout"},
        "lfq": bits,
        "bsq": bits,
        "gaussian": gaussian,
        "gaussian_quant": gaussian | {"target_divergence", "tolerance"},
        "fsq": set(),
        "grouped": set(),
    }
    for kind, names in expected.items():
        fields = dataclasses.fields(kinds()[kind])  # type: ignore[arg-type]
        assert {f.name for f in fields if f.metadata.get("training_only")} == names, kind
