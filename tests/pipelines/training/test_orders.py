"""Training in random orders: which share of the examples, which orders, and what options have no effect.

Left out: that a resume and several processes change nothing, which the whole runs of priors are in any order
for (test_checkpoints.py, processes/test_two_processes.py).
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import train_prior
from pipelines.train_prior import drawn_orders, losses_of
from pipelines.training.options import OrderOptions
from prior import Prior
from prior.model import PriorOutput
from tests.helpers.priors import random_codes, random_prior
from tests.helpers.running import TINY_PRIOR, Script, assert_refused, read
from tests.prior.test_orders import ANY
from tokenizer.distributed import Step


def test_the_share_of_random_orders_falls_between_two_points() -> None:
    steady = OrderOptions()
    assert [steady.share(i / 10) for i in range(10)] == [0.9] * 10
    falling = OrderOptions(random=1.0, anneal=(0.5, 0.75))
    shares = [falling.share(i / 8) for i in range(8)]
    assert shares == [1, 1, 1, 1, 1, 0.5, 0, 0]
    assert OrderOptions(anneal=(0.5, 0.5)).share(0.5) == 0
    assert OrderOptions(anneal=(0.0, 1.0)).share(0.5) == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"random": 0.0}, "orders.random is 0.0, expected above 0"),
        ({"random": 1.5}, "orders.random is 1.5"),
        ({"anneal": (0.8, 0.2)}, r"orders.anneal is \(0.8, 0.2\), expected two rising"),
        ({"anneal": (-1.0, 0.2)}, "orders.anneal is"),
    ],
)
def test_shares_that_are_none_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        OrderOptions(**options)


def test_orders_are_rows_of_one_table_for_the_global_batch() -> None:
    step = Step(seed=3, index=7, offset=0, total=400)
    whole = drawn_orders(400, 6, 0.75, step)
    assert whole is not None and bool((whole.sort(dim=1).values == torch.arange(6)).all())
    part = drawn_orders(30, 6, 0.75, Step(seed=3, index=7, offset=100, total=400))
    assert part is not None and torch.equal(part, whole[100:130])
    raster = (whole == torch.arange(6)).all(dim=1).double().mean().item()
    assert 0.19 < raster < 0.31  # a quarter, and one in 720 of the others
    other = drawn_orders(400, 6, 0.75, Step(seed=3, index=8, offset=0, total=400))
    assert other is not None and not torch.equal(other, whole)
    assert drawn_orders(400, 6, 0.0, step) is None


def test_the_loss_is_that_of_the_orders() -> None:
    prior, codes = random_prior(ANY).eval(), random_codes(ANY, 8)
    labels, step = torch.zeros(8, dtype=torch.int64), Step(seed=0, index=0, offset=0, total=8)
    losses, _ = losses_of(prior, slice(2, 6), step, codes, labels, label_dropout=0.0, random_orders=1.0)
    expected = prior.nll(codes[2:6], 0, drawn_orders(4, 12, 1.0, step)).mean() / 12
    torch.testing.assert_close(losses["nll"].detach(), expected)
    raster, _ = losses_of(prior, slice(2, 6), None, codes, labels, label_dropout=0.0, random_orders=1.0)
    torch.testing.assert_close(raster["nll"].detach(), prior.nll(codes[2:6], 0).mean() / 12)


def test_the_script_trains_a_prior_of_every_order(
    script: Script, tiny_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = list[float]()

    def noted(*given: Any, random_orders: float, **other: Any) -> tuple[Any, Any]:
        shares.append(random_orders)
        return losses_of(*given, random_orders=random_orders, **other)

    monkeypatch.setattr(train_prior, "losses_of", noted)
    words = ("small", *TINY_PRIOR, "--tokens", tiny_tokens, "--max-steps", 4, "--tracker", "none")
    orders = ("--model.order", "any", "--orders.random", 1, "--orders.anneal", 0.25, 0.75)
    script("train_prior", *words, *orders, "--output", tmp_path)
    assert shares == [1, 1, 0.5, 0]
    prior, metrics = Prior.from_pretrained(tmp_path), read(tmp_path / "metrics.json")
    assert prior.config.order == "any" and "every order" in (tmp_path / "README.md").read_text()
    assert 4 < metrics["bits_per_code_random_order"] < 5.2 and metrics["bits_per_code_random_order_std"] > 0
    assert isinstance(prior(random_codes(prior.config)), PriorOutput)


def test_options_of_orders_without_them_and_patterns_that_have_none(
    script: Script, tiny_tokens: Path, tmp_path: Path
) -> None:
    words = ("small", *TINY_PRIOR, "--tokens", tiny_tokens, "--max-steps", 1, "--tracker", "none")
    finished = script("train_prior", *words, "--orders.random", 0.5, "--output", tmp_path / "a")
    assert "--orders.* has no effect without --model.order any" in finished.err
    no = ("--model.order", "any", "--model.no-target-embedding", "--output", tmp_path / "b")
    assert_refused(script("train_prior", *words, *no, code=2), "order", "target_embedding")
    assert not (tmp_path / "b").exists()
