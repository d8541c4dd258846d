"""Pictures that go missing between the look through them and their use: none is counted twice.

Left out: training, whose batches keep their size (test_order.py).
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pipelines.data.augment import Augment
from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.data.examples import Examples
from pipelines.data.kinds import FixedViews, to_float
from pipelines.evaluation.tokenizers import evaluate_tokenizer
from pipelines.reports.pictures import some_pictures
from tests.helpers.pictures_on_disk import write
from tests.helpers.tiny import tokenizer
from tokenizer import Tokenizer

LOST = ["01.png", "04.png", "05.png"]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer("vq")


@pytest.fixture
def examples(tok: Tokenizer, tmp_path: Path) -> Examples:
    """Ten pictures that are decoded on access, three of them gone."""
    root = write(tmp_path, [f"{i:02}.png" for i in range(10)])
    config = DataConfig(str(root), valid_fraction=0)
    train = load_splits(config, tok.modality, cache_bytes=0).train
    assert isinstance(train, Examples) and len(train) == 10
    for name in LOST:
        (root / name).unlink()
    return train


def test_they_are_left_out_of_tokens(
    tok: Tokenizer, examples: Examples, caplog: pytest.LogCaptureFixture
) -> None:
    augment = Augment(flip=True, shift=2)
    parts = list(examples.codes(tok, range(10), 2, FixedViews(2, augment, seed=3)))
    ids = [name for part in parts for name in part.ids]
    assert ids == [f"{i:02}.png" for i in (0, 2, 3, 6, 7, 8, 9)] and sum(p.items for p in parts) == 10
    for part in parts:
        for place, name in enumerate(part.ids):
            i = int(name[:2])
            for view in (0, 1):
                y = augment.fixed_view(examples.x(i)[None], np.array([i]), view, 10, 3)
                assert torch.equal(part.codes[0][2 * place + view], tok.encode(to_float(y))[0])
    assert [line.split(": ")[1] for line in caplog.messages] == LOST


def test_they_are_left_out_of_measures(tok: Tokenizer, examples: Examples) -> None:
    measured = evaluate_tokenizer(tok, examples, Accelerator(cpu=True), batch_size=2)
    x = to_float(examples.take_readable(np.arange(10))[0])
    assert len(x) == 7 and measured["items"] == 7
    error = tok.decode(tok.encode(x), size=x.shape[2:]).clamp(-1, 1) - x
    assert measured["l2"] == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert some_pictures(examples, 10).shape == x.shape
