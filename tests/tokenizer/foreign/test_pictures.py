"""Tokenizers of pictures of other libraries, beside their library's own model.

Left out: what sound has (test_contract.py).
"""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.foreign import model_of, saved
from tests.helpers.tiny import pictures
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("janus_vqgan", tmp_path_factory.mktemp("foreign"))


@pytest.fixture
def tok(folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(folder)


def test_codes_are_those_of_the_authors_and_pictures_those_of_the_library(tok: Tokenizer) -> None:
    peer, x = model_of("janus_vqgan"), pictures(5, 3, 16, 16)
    codes = tok.encode(x)
    with torch.no_grad():
        z = F.normalize(peer.quant_conv(peer.encoder(x)), dim=1)
        similar = torch.einsum("bdhw, nd -> bnhw", z, F.normalize(peer.quantize.embedding.weight, dim=1))
        theirs = peer.encode(x).image_tokens.view(5, 4, 4)
        x_hat = peer.decode(codes.flatten(1))
    assert codes.shape == (5, 1, 4, 4) and codes.unique().numel() > 4
    assert torch.equal(codes[:, 0], similar.argmax(1))
    assert not torch.equal(codes[:, 0], theirs)  # without the lengths that its decode takes away
    torch.testing.assert_close(tok.decode(codes), x_hat, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (16, 16), (21, 18)])
def test_every_size_comes_back(tok: Tokenizer, size: tuple[int, int]) -> None:
    codes = tok.encode(pictures(2, 3, *size))
    assert codes.shape == (2, 1, -(-size[0] // 4), -(-size[1] // 4))
    assert tok.decode(codes, size=size).shape == (2, 3, *size)


def test_forward_is_encode_and_decode_with_a_gradient(tok: Tokenizer) -> None:
    x = pictures(2, 3, 15, 16).requires_grad_()
    out = tok(x)
    assert out.codes is not None and torch.equal(out.codes, tok.encode(x.detach()))
    torch.testing.assert_close(out.x_hat.detach(), tok.decode(out.codes, size=(15, 16)), rtol=0, atol=1e-6)
    out.losses["l1"].backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_what_is_saved_loads_here_and_in_the_library(tok: Tokenizer, tmp_path: Path) -> None:
    x, mark = pictures(2, 3, 16, 16), tok.fingerprint()
    with torch.no_grad():
        for parameter in tok.decoder.parameters():
            parameter.mul_(1.01)
    codes = tok.encode(x)
    tok.save_pretrained(tmp_path)
    again, peer = Tokenizer.from_pretrained(tmp_path), type(model_of("janus_vqgan")).from_pretrained(tmp_path)
    assert again.fingerprint() == tok.fingerprint() == mark
    assert torch.equal(again.encode(x), codes) and torch.equal(again.decode(codes), tok.decode(codes))
    with torch.no_grad():
        theirs = peer.eval().decode(codes.flatten(1))
    torch.testing.assert_close(tok.decode(codes), theirs, rtol=0, atol=1e-5)
