"""What a prior refuses: codes, labels, options and configs that do not fit, each with its fix.

Left out: masks and regions (`prior/sampling/test_inpainting.py`).
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import Prior
from tests.helpers.priors import PICTURE, random_codes


def test_codes_of_another_tokenizer_are_refused() -> None:
    prior = Prior(dataclasses.replace(PICTURE, tokenizer_id="user/tok", tokenizer_fingerprint="abc"))
    prior.check_tokenizer("abc")
    with pytest.raises(ValueError, match=r"abc.*user/tok.*xyz.*use that tokenizer.*train"):
        prior.check_tokenizer("xyz")
    with pytest.raises(ValueError, match=r"not recorded.*xyz"):
        Prior(PICTURE).check_tokenizer("xyz")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (
            torch.zeros(2, 1, 3, 3, dtype=torch.int64),
            r"codes: expected int64 of shape \(B, 1, 3, 4\), got .*3, 3",
        ),
        (torch.zeros(2, 3, 4, dtype=torch.int64), r"codes: expected int64 of shape \(B, 1, 3, 4\)"),
        (torch.zeros(2, 1, 3, 4), r"int64.*got torch.float32"),
        (torch.full((2, 1, 3, 4), 5), r"codes: expected 0 to 4, got 5 to 5.*tokenizer"),
        (torch.full((2, 1, 3, 4), -1), r"codes: expected 0 to 4, got -1 to -1"),
    ],
)
def test_bad_codes_are_refused(codes: Tensor, message: str) -> None:
    prior = Prior(PICTURE)
    for call in (prior, prior.nll):
        with pytest.raises(ValueError, match=message):
            call(codes)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("frog", "unknown class 'frog'; known: cat, dog, owl"),
        (["cat", "frog"], "'frog'.*cat, dog, owl"),
        (3, r"expected -1 \(unconditional\) to 2, got 3"),
        (-2, "expected -1 .* to 2, got -2"),
        (["cat"], "expected one .* 2 .*, got 1"),
        (torch.tensor([0, 3]), "expected -1 .* to 2, got 0 to 3"),
        (torch.tensor([0, 1, 2]), "expected one .* 2 .*, got 3"),
        (torch.tensor([0.0, 1.0]), "expected int64 .*, got torch.float32"),
        (torch.tensor([[0, 1]]), r"\(2,\), got torch.int64 of \(1, 2\)"),
    ],
)
def test_bad_labels_are_refused(label: Any, message: str) -> None:
    prior, codes = Prior(PICTURE), random_codes(PICTURE, 2)
    for call in (
        lambda: prior.sample(2, label),
        lambda: prior.nll(codes, label),
        lambda: prior(codes, label),
    ):
        with pytest.raises(ValueError, match=f"label: .*{message}"):
            call()


def test_labels_by_name_and_number() -> None:
    prior = Prior(PICTURE)
    assert [prior.label_index(x) for x in ("cat", "owl", 1, -1)] == [0, 2, 1, -1]
    with pytest.raises(ValueError, match=r"label: .*'cat'.*no classes"):
        Prior(dataclasses.replace(PICTURE, class_names=())).sample(1, "cat")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"temperature": -1.0}, "temperature: expected 0 .*got -1"),
        ({"top_k": 6}, r"top_k: expected 1 to 5 .*got 6"),
        ({"top_p": 0.0}, r"top_p: expected .*\(0, 1\].*got 0"),
        ({"min_p": 1.5}, r"min_p: expected .*\[0, 1\].*got 1\.5"),
        ({"cfg_schedule": "steep"}, "cfg_schedule: unknown 'steep'; known: constant, linear, cosine"),
        ({"cfg_scale": 2.0}, r"cfg_scale=2\.0 .*label.*cfg_scale=1"),
        ({"cfg_scale": 2.0, "label": -1}, r"cfg_scale=2\.0 .*label.*cfg_scale=1"),
        ({"prefix": torch.full((1, 1, 1, 4), 5)}, "prefix: expected 0 to 4, got 5 to 5"),
        (
            {"prefix": torch.zeros(1, 1, 4, 4, dtype=torch.int64)},
            "prefix: expected at most 3 .*got 4",
        ),
        (
            {"prefix": torch.zeros(1, 1, 1, 3, dtype=torch.int64)},
            r"prefix: expected int64 .*\(B, 1, 1, 4\), got .*\(1, 1, 1, 3\)",
        ),
        ({"prefix": torch.zeros(1, 4, dtype=torch.int64)}, r"prefix: expected int64 .*got .*\(1, 4\)"),
        ({"prefix": torch.zeros(1, 1, 1, 4)}, r"prefix: .*int64.*got torch.float32"),
        ({"prefix": torch.zeros(3, 1, 1, 4, dtype=torch.int64)}, "prefix: expected 1 or 2 examples, got 3"),
        ({"size": 0}, "size: expected 1 to 3 .*got 0"),
        ({"size": 4}, "size: expected 1 to 3 .*got 4"),
        (
            {"size": 1, "prefix": torch.zeros(1, 1, 2, 4, dtype=torch.int64)},
            r"size: expected 2 .*prefix.* to 3 .*got 1",
        ),
        ({"generator": [torch.Generator()]}, "generator: expected one .* 2 .*, got 1"),
    ],
)
def test_bad_options_of_sampling_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prior(PICTURE).sample(**{"batch_size": 2, **options})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 1}, "codebook_size: expected 2 to .*got 1"),
        ({"codebook_size": 1 << 40}, "codebook_size: expected 2 to .*got 1099511627776"),
        ({"num_codebooks": 0}, "num_codebooks: expected 1 to 256, got 0"),
        ({"grid": ()}, r"grid: expected a tuple .*1 to 3.*got \(\)"),
        ({"grid": [8, 8]}, r"grid: expected a tuple .*got \[8, 8\]"),
        ({"grid": (8, 0)}, r"grid\[1\]: expected 1 to 65536, got 0"),
        ({"grid": (60000, 60000)}, r"num_codebooks × grid.*expected 1 to 65536, got 3600000000"),
        ({"class_names": ("b", "a", "a")}, r"class_names\[2\]: expected .*differs.*got 'a'"),
        ({"class_names": ("a", "")}, r"class_names\[1\]: expected .*not empty.*got ''"),
        ({"class_names": (), "unconditional": False}, "unconditional: expected true.*no classes"),
        ({"dim": 18}, "dim: expected .*heads × 4 = 8 .*got 18"),
        ({"dim": 10**9}, "dim: expected 2 to 32768, got 1000000000"),
        ({"heads": 0}, "heads: expected 1 to 512, got 0"),
        ({"depth": 10**9}, "depth: expected 1 to 512, got 1000000000"),
        ({"ffn": math.nan}, r"ffn: expected 0\.0625 to 64, got nan"),
        ({"dropout": 1.0}, r"dropout: expected a share in \[0, 1\), got 1.0"),
        ({"pattern": "spiral"}, "pattern: unknown 'spiral'; known: .*flatten"),
        ({"rope_theta": 0.0}, "rope_theta: expected 1 to .*got 0"),
        ({"rotary": "spiral"}, "rotary: expected grid or sequence, got 'spiral'"),
        (
            {"rotary": "sequence", "dim": 18, "heads": 6},
            "dim: expected .*heads × 2 = 12 .*got 18",
        ),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PICTURE, **changes)


def test_a_network_of_too_many_parameters_is_refused_before_it_takes_memory() -> None:
    config = dataclasses.replace(PICTURE, dim=1 << 15, heads=64, depth=16)  # 690 GB in float32
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"parameters.* 1e\+10, got 1\.7\d*e\+11; .*dim, depth or ffn"):
        Prior(config)
    assert torch.equal(torch.get_rng_state(), before)
