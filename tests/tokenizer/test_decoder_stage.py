"""The second stage: the decoder alone learns, from what the codes of any bottleneck stand for."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import VARIANTS, codec, pictures, sounds, tokenizer
from tokenizer import Tokenizer
from tokenizer.bottlenecks import kinds
from tokenizer.config import DecoderConfig, TokenizerConfig
from tokenizer.decoder_stage import DecoderStage, begin_as, with_decoder
from tokenizer.distributed import Step
from tokenizer.modalities.audio import AudioConfig
from tokenizer.variants import config_from_dict, config_to_dict

KINDS = [*sorted(kinds()), *VARIANTS]
L1 = {"l1": 1.0}


def state(tok: Tokenizer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in tok.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_decoder_learns(kind: str) -> None:
    tok = tokenizer(kind)
    before, fingerprint, x = state(tok), tok.fingerprint(), pictures(4, 3, 16, 16)
    training = {k: v.clone() for k, v in tok.bottleneck.training_state().items()}
    tok.bottleneck.events()
    stage = DecoderStage(tok, L1).train()
    optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], lr=0.1)
    for index in range(3):
        out = stage(x, Step(0, index, 0, 4))
        assert out.x_hat.shape == x.shape and set(out.losses) == set(out.stats) == {"l1"}
        sum(out.losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert tok.decoder.training and not tok.encoder.training and not tok.bottleneck.training
    changed = {k for k, v in state(tok).items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.startswith("decoder.")}
    assert tok.fingerprint() == fingerprint
    after = tok.bottleneck.training_state()
    assert all(torch.equal(v, training[k]) for k, v in after.items()) and tok.bottleneck.events() == []


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"gaussian", "rvq", "rvq-gradient"}))
def test_it_learns_from_what_is_decoded_later(kind: str) -> None:
    tok, x = tokenizer(kind), pictures(2, 3, 16, 16)
    assert torch.equal(DecoderStage(tok, L1).train()(x, Step(0, 0, 0, 2)).x_hat, tok.decode(tok.encode(x)))


def test_an_rvq_is_decoded_from_every_number_of_codebooks() -> None:
    tok, x = codec(), sounds(1, 1, 320).expand(64, -1, -1)
    x_hat = DecoderStage(tok, L1).train()(x, Step(0, 5, 0, 64)).x_hat
    codes = tok.encode(x[:1])
    by_count = [tok.decode(codes[:, :k], 320)[0] for k in range(1, tok.num_codebooks + 1)]
    found = [min(range(len(by_count)), key=lambda k: (by_count[k] - y).abs().max().item()) for y in x_hat]
    for y, k in zip(x_hat, found, strict=True):
        torch.testing.assert_close(y, by_count[k], rtol=1e-3, atol=1e-3)
    assert set(found) == set(range(tok.num_codebooks))
    assert found.count(tok.num_codebooks - 1) > 64 / 2 - 16  # half of them have all


def test_a_vae_is_decoded_from_samples() -> None:
    tok, x = tokenizer("gaussian"), pictures(4, 3, 16, 16)
    stage, step = DecoderStage(tok, L1).train(), Step(3, 5, 0, 4)
    posterior = tok.posterior(x)
    expected = tok.decode_latents(posterior.reparameterise(step.normal(posterior.mean, "epsilon")))
    assert torch.equal(stage(x, step).x_hat, expected)


@pytest.mark.parametrize("kind", ["vq", "gaussian", "rvq"])
def test_rows_do_not_depend_on_who_has_them(kind: str) -> None:
    tok, x = tokenizer(kind), pictures(4, 3, 16, 16)
    stage = DecoderStage(tok, L1).train()
    whole = stage(x, Step(0, 5, 0, 4)).x_hat
    halves = [stage(x[i : i + 2], Step(0, 5, i, 4)).x_hat for i in (0, 2)]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tok", [tokenizer("vq"), tokenizer("gaussian")], ids=["vq", "gaussian"])
def test_another_decoder_leaves_codes_and_fingerprint(tok: Tokenizer) -> None:
    widths = tuple(2 * w for w in tok.config.modality.widths)
    config = dataclasses.replace(tok.config, decoder=DecoderConfig(widths=widths))
    other = with_decoder(tok, config).eval()
    assert other.fingerprint() == tok.fingerprint()
    assert sum(p.numel() for p in other.decoder.parameters()) > 2 * sum(
        p.numel() for p in tok.decoder.parameters()
    )
    x = pictures(2, 3, 16, 16)
    if tok.is_discrete:
        assert torch.equal(other.encode(x), tok.encode(x))
        assert other.decode(other.encode(x)).shape == x.shape
    else:
        assert torch.equal(other.posterior(x).logvar, tok.posterior(x).logvar)
    assert config_from_dict(TokenizerConfig, config_to_dict(config)) == config


@pytest.mark.parametrize("blocks", [None, (1, 3)], ids=["as the encoder", "more already"])
def test_a_deeper_decoder_begins_as_the_old_one(blocks: tuple[int, ...] | None) -> None:
    tok = tokenizer("vq")
    had = blocks or tok.config.modality.blocks
    config = dataclasses.replace(tok.config, decoder=DecoderConfig(blocks=blocks, deeper=2))
    other = with_decoder(tok, config)
    assert begin_as(other.decoder, tok.decoder)
    assert [type(layer).__name__ for layer in other.decoder].count("ResidualBlock") == sum(had) + 2 * len(had)
    z = pictures(2, tok.decoder[0].weight.shape[1], 4, 4)
    assert torch.equal(other.decoder(z), tok.decoder(z))
    other.decoder(z).square().mean().backward()
    assert all(p.grad is not None for p in other.decoder.parameters())
    further = with_decoder(tok, dataclasses.replace(config, decoder=DecoderConfig(blocks=blocks, deeper=3)))
    assert begin_as(further.decoder, other.decoder) and not begin_as(other.decoder, further.decoder)


def test_a_decoder_of_another_shape_is_left_as_it_is() -> None:
    tok = tokenizer("vq")
    widths = tuple(2 * w for w in tok.config.modality.widths)
    wide = with_decoder(tok, dataclasses.replace(tok.config, decoder=DecoderConfig(widths=widths, deeper=1)))
    before = {k: v.clone() for k, v in wide.decoder.state_dict().items()}
    assert not begin_as(wide.decoder, tok.decoder)
    assert all(torch.equal(v, before[k]) for k, v in wide.decoder.state_dict().items())
    for deeper, modality, match in ((-1, tok.config.modality, "expected 0"), (1, AudioConfig(), "give 0")):
        with pytest.raises(ValueError, match=f"decoder: deeper is .*{match}"):
            TokenizerConfig(modality=modality, decoder=DecoderConfig(deeper=deeper), losses={"l1": 1.0})


def test_a_decoder_that_cannot_be_is_refused() -> None:
    for decoder in (DecoderConfig(widths=(8,)), DecoderConfig(blocks=(1, 2, 3, 4, 5, 6, 7))):
        for modality in (tokenizer("vq").config.modality, AudioConfig()):
            with pytest.raises(ValueError, match=r"decoder: .*one value per level"):
                TokenizerConfig(modality=modality, decoder=decoder)
