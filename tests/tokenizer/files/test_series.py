"""Files of numpy.save become series of the model's channels in [-1, 1], or a message that helps."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenizer.modalities.files.series import Series


def encoded(x: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, x)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["float64", "float16", "int16", "uint8", "bool", ">f4"])
def test_numbers_of_any_type_are_read_in_spans(dtype: str, tmp_path: Path) -> None:
    x = np.arange(20).reshape(2, 10).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    wanted = x.astype(np.float32) / np.array([[20], [40]], np.float32)
    for source in (tmp_path / "x.npy", str(tmp_path / "x.npy"), encoded(x), x):
        with Series(source, 2, (20.0, 40.0)) as series:
            assert series.length == 10
            np.testing.assert_array_equal(series.read(), wanted)
            np.testing.assert_array_equal(series.read(3, 4), wanted[:, 3:7])
            np.testing.assert_array_equal(np.concatenate([*series.blocks(3)], axis=1), wanted)
            assert series.peak == wanted.max()


def test_one_channel_needs_no_axis_and_tensors_are_taken() -> None:
    with Series(torch.tensor([0.5, -4.0]), 1, (2.0,)) as series:
        np.testing.assert_array_equal(series.read(), [[0.25, -1.0]])
        assert series.peak == 2.0


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (np.zeros((10, 3)), r"\(10, 3\), expected \(3, T\).*transpose.*--model\.modality\.channels"),
        (np.zeros((3, 0)), "no samples.*remove"),
        (np.zeros((3, 4), complex), "complex128, expected numbers.*float32"),
        (np.array([["a"]]), "<U1, expected numbers.*float32"),
    ],
)
def test_what_is_no_series_is_named(x: np.ndarray, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Series(encoded(x), 3, (1.0,), "x.npy")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.npy: .*path"):
        Series(tmp_path / "gone.npy", 3, (1.0,))
    objects = BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    for data in (b"", b"no numpy", encoded(np.zeros((3, 9)))[:-5], objects.getvalue()):
        with pytest.raises(ValueError, match=r"x\.npy: .*numpy\.save .*without objects"):
            Series(data, 3, (1.0,), "x.npy")
    with pytest.raises(TypeError, match=r"expected .*numpy\.save.*array, got int"):
        Series(3, 3, (1.0,))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gaps_are_named_when_they_are_read(bad: float) -> None:
    x = np.zeros((3, 9))
    x[1, 7] = bad
    series = Series(encoded(x), 3, (1.0,), "x.npy")
    assert series.read(0, 5).shape == (3, 5)
    with pytest.raises(ValueError, match=r"x\.npy: .*NaN.*fill.*cut"):
        series.check()
    with pytest.raises(ValueError, match=r"x\.npy: .* 3 to 10.* 9"):
        series.read(3, 7)
