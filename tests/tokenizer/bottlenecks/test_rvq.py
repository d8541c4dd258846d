"""Residual quantisation against ten plain lines; its start, dropout, and the first codebooks alone."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import bottleneck_config, codec, latents, pictures, sounds, tokenizer, trained
from tokenizer import model
from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.bottlenecks.gaussian import GaussianConfig
from tokenizer.bottlenecks.grouped import GroupedConfig
from tokenizer.bottlenecks.lfq import LFQConfig
from tokenizer.bottlenecks.rvq import RVQ, RVQConfig
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.distributed import Step
from tokenizer.search.exact import nearest

K = 3


@pytest.fixture(scope="module")
def rvq() -> RVQ:
    bottleneck = trained("rvq", steps=40, num_codebooks=K)
    assert isinstance(bottleneck, RVQ) and bottleneck.ready
    return bottleneck.eval()


def by_hand(rvq: RVQ, z: Tensor) -> tuple[Tensor, Tensor]:
    """codes and z_q of vectors z (M, dim), one after the other."""
    codes, total = [], []
    for vector in z.double():
        residual, row = vector.clone(), []
        for stage in rvq.stages:
            w_in, b_in = stage.project_in.weight.double(), stage.project_in.bias.double()
            w_out, b_out = stage.project_out.weight.double(), stage.project_out.bias.double()
            entries = stage.codebook.entries.double()
            row.append(int((w_in @ residual + b_in - entries).square().sum(1).argmin()))
            residual = residual - (w_out @ entries[row[-1]] + b_out)
        codes.append(row)
        total.append(vector - residual)
    return torch.tensor(codes), torch.stack(total)


def test_codes_and_vectors_are_those_of_the_algorithm(rvq: RVQ) -> None:
    z = latents(rvq, 5, 7)
    codes, z_q = by_hand(rvq, z.transpose(1, 2).reshape(35, -1))
    assert torch.equal(rvq.encode(z).transpose(1, 2).reshape(35, K), codes)
    found = rvq.decode(rvq.encode(z)).transpose(1, 2).reshape(35, -1)
    torch.testing.assert_close(found.double(), z_q, rtol=1e-5, atol=1e-5)


def test_fewer_codebooks_decode_as_the_first_stages(rvq: RVQ) -> None:
    z = latents(rvq, 2, 9)
    codes = rvq.encode(z)
    parts = [rvq.stages[k].decode(codes[:, k : k + 1]) for k in range(K)]
    for k in range(1, K + 1):
        torch.testing.assert_close(rvq.decode(codes[:, :k]), sum(parts[:k]))


def test_each_stage_brings_z_q_nearer() -> None:
    config = bottleneck_config(
        "rvq", num_codebooks=4, stage=VQConfig(24, dim=3, codebook_dim=3, kmeans_steps=2)
    )
    rvq = config.build().train()
    for index in range(60):
        rvq(latents(rvq, 16, 12, seed=index), Step(0, index, 0, 16))
    z = latents(rvq.eval(), 64, 12, seed=99)
    codes = rvq.encode(z)
    errors = [(z - rvq.decode(codes[:, :k])).square().mean().item() for k in range(1, 5)]
    assert all(b < 0.6 * a for a, b in pairwise(errors)), errors


def test_stages_start_one_after_the_other() -> None:
    rvq = bottleneck_config("rvq", num_codebooks=K).build().train()
    for index in range(2 * K):
        assert [bool(s.codebook.started) for s in rvq.stages] == [index >= 2 * (k + 1) for k in range(K)]
        z = latents(rvq, 8, 5, seed=index)
        out = rvq(z, Step(0, index, 0, 8))
        torch.testing.assert_close(out.z_q, z)  # unquantized until the last stage has started
    assert rvq.ready
    z = latents(rvq, 8, 5, seed=99)
    assert not torch.allclose(rvq(z, Step(0, 9, 0, 8)).z_q, z, atol=1e-2)
    assert [e.text.split(":")[0] for e in rvq.events()] == [f"codebook {k + 1}" for k in range(K)]


def test_quantizer_dropout_is_keyed_by_the_row_of_the_global_batch(rvq: RVQ) -> None:
    rvq.train()
    z = latents(rvq, 400, 1)
    used = rvq._stages_used(z, Step(3, 5, 0, 400), vary=rvq.training).flatten()
    halves = [
        rvq._stages_used(z[:200], Step(3, 5, offset, 400), vary=rvq.training).flatten() for offset in (0, 200)
    ]
    assert torch.equal(torch.cat(halves), used)
    assert not torch.equal(rvq._stages_used(z, Step(3, 6, 0, 400), vary=rvq.training).flatten(), used)
    share = used.bincount(minlength=K + 1) / 400
    torch.testing.assert_close(share, torch.tensor([0, 1 / 6, 1 / 6, 4 / 6]), atol=0.08, rtol=0)
    rvq.eval()
    assert rvq._stages_used(z, None, vary=rvq.training).unique().tolist() == [K]


def test_dropped_stages_do_not_reach_the_decoder() -> None:
    rvq = trained("rvq", steps=10, num_codebooks=K, dropout=1.0)
    z = latents(rvq, 30, 2)
    step = Step(0, 50, 0, 30)
    used = rvq._stages_used(z, step, vary=rvq.training).flatten()
    out = rvq(z, step)
    before = trained("rvq", steps=10, num_codebooks=K, dropout=1.0)
    for i, k in enumerate(used.tolist()):
        expected = before.decode(out.codes[i : i + 1, :k])
        torch.testing.assert_close(out.z_q[i : i + 1], expected, rtol=1e-4, atol=1e-5)


def test_gradients_pass_straight_through_all_stages() -> None:
    """Without projections ∂z_q/∂z is the identity however many stages there are."""
    config = RVQConfig(3, VQConfig(24, dim=4, codebook_dim=4, kmeans_steps=1, beta=0.0), dropout=0.0)
    rvq = config.build().train()
    for index in range(4):
        rvq(latents(rvq, 8, 5, seed=index), Step(0, index, 0, 8))
    z = latents(rvq, 2, 3).requires_grad_()
    weights = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    (rvq(z, Step(0, 4, 0, 2)).z_q * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)


@pytest.mark.parametrize(
    "stage",
    [VQConfig(24, dim=4, codebook_dim=4, kmeans_steps=1, beta=1.0), LFQConfig(bits=4, dim=4, beta=1.0)],
    ids=["vq", "lfq"],
)
def test_the_commitment_of_every_stage_pulls_z(stage: BottleneckConfig) -> None:
    rvq = RVQConfig(3, stage, dropout=0.0).build().train()
    for index in range(4):
        rvq(latents(rvq, 8, 5, seed=index), Step(0, index, 0, 8))
    z = latents(rvq, 2, 3).requires_grad_()
    codes = rvq.encode(z)
    errors = [(z - rvq.decode(codes[:, :k])).detach() for k in (1, 2, 3)]
    rvq(z, Step(0, 4, 0, 2)).losses["commitment"].backward()
    torch.testing.assert_close(z.grad, sum(2 * e / z.numel() / 3 for e in errors))


def test_the_weights_of_every_stage_learn() -> None:
    rvq = trained("rvq", steps=20, num_codebooks=K, dropout=0.0)
    out = rvq(latents(rvq, 4, 6), Step(0, 30, 0, 4))
    (out.z_q.square().sum() + sum(out.losses.values())).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in rvq.parameters())


def test_the_fingerprint_knows_what_later_stages_see() -> None:
    tok = codec()
    before = tok.fingerprint()
    with torch.no_grad():
        tok.bottleneck.stages[1].project_out.weight += 1  # the last stage: decides nothing more
        tok.bottleneck.stages[0].codebook.ema_count += 1
    assert tok.fingerprint() == before
    with torch.no_grad():
        tok.bottleneck.stages[0].project_out.weight += 1e-3
    assert tok.fingerprint() != before


@pytest.mark.parametrize("make", [lambda: tokenizer("rvq"), lambda: codec("rvq")], ids=["pictures", "sound"])
def test_encode_and_decode_with_fewer_codebooks(make: object) -> None:
    tok = make()
    x = pictures(2, 3, 9, 10) if tok.modality.name == "image" else sounds(2, 1, 333)
    codes = tok.encode(x)
    assert codes.shape[1] == 2 and torch.equal(tok.encode(x, num_codebooks=1), codes[:, :1])
    full, coarse = (tok.decode(codes[:, :k], size=tuple(x.shape[2:])) for k in (2, 1))
    assert full.shape == coarse.shape == x.shape and not torch.equal(full, coarse)
    with pytest.raises(ValueError, match="num_codebooks is 3, expected 1 to 2"):
        tok.encode(x, num_codebooks=3)


def searches(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What `call` returns, and how many codebooks it searched."""
    asked: list[int] = []

    def counted(*arguments: Tensor) -> Tensor:
        asked.append(1)
        return nearest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("tokenizer.bottlenecks.vq.nearest", counted)
        return call(), len(asked)


def test_only_the_codebooks_that_are_asked_for_are_searched(
    rvq: RVQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = latents(rvq, 2, 5)
    one_group = GroupedConfig(1, bottleneck_config("rvq", num_codebooks=K)).build().eval()
    two_groups = GroupedConfig(2, bottleneck_config("vq")).build().eval()
    one_group.groups[0].load_state_dict(rvq.state_dict())
    for bottleneck in (rvq, one_group):
        for k in range(1, K + 1):
            codes, count = searches(monkeypatch, lambda: bottleneck.encode_first(z, k))  # noqa: B023
            assert torch.equal(codes, rvq.encode(z)[:, :k]) and count == k
    z = latents(two_groups, 2, 5)
    assert torch.equal(two_groups.encode_first(z, 2), two_groups.encode(z))
    tok = codec()
    x, lengths = sounds(2, 1, 1800), torch.tensor([1800, 1300])
    ways: list[Callable[[int], Tensor]] = [
        lambda k: tok.encode(x, num_codebooks=k),
        lambda k: tok.encode(x, lengths, num_codebooks=k),
        lambda k: torch.cat(list(tok.encode_stream(x.split(600, dim=2), k)), dim=2),
    ]
    for chunk in (model.CHUNK, 1000):  # the second time whole and padded batches go in several
        monkeypatch.setattr(model, "CHUNK", chunk)
        for encode in ways:
            both, of_both = searches(monkeypatch, lambda: encode(2))  # noqa: B023
            codes, count = searches(monkeypatch, lambda: encode(1))  # noqa: B023
            assert torch.equal(codes, both[:, :1]) and 0 < count == of_both / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codebooks": 0}, "num_codebooks is 0, expected 1 to 256"),
        ({"dropout": 1.5}, "dropout is 1.5, expected 0 to 1"),
        ({"stage": RVQConfig()}, "stage .*rvq.*single codebook"),
        ({"stage": GaussianConfig()}, "bottleneck gaussian .*no codes.*choose"),
        ({"stage": GroupedConfig()}, "stage grouped: rvq needs one codebook"),
    ],
)
def test_what_a_config_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RVQConfig(**changes).build()
