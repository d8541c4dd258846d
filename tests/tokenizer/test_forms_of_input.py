"""What can mean one thing only is taken, in whatever form it comes; the rest says what is expected.

Left out: wrong shapes and ranges (test_model.py, prior/test_bad_input.py).
"""

from typing import Any

import numpy as np
import pytest
import torch

from prior import Prior
from tests.helpers.priors import PICTURE, random_codes
from tests.helpers.tiny import codec, pictures, sounds, tokenizer
from tokenizer import checks, model, network

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_said", set())


@pytest.fixture(scope="module")
def prior() -> Prior:
    torch.manual_seed(0)
    prior = Prior(PICTURE).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return prior


@pytest.mark.parametrize("normalise", [lambda x: 255 * x, lambda x: (x - MEAN) / STD])
def test_data_in_another_range_are_named_once(normalise: Any, caplog: pytest.LogCaptureFixture) -> None:
    tok, vae = tokenizer(), tokenizer("gaussian")
    x = (pictures(2, 3, 16, 16) + 1) / 2
    tok.encode(2 * x - 1)
    tok.train()(normalise(x))  # whatever training does with it
    torch.compile(tok.eval().encode, backend="eager")(normalise(x))
    assert not [r for r in caplog.records if r.name.startswith("tokenizer")]
    caplog.clear()
    for encode in (tok.encode, vae.posterior):
        encode(normalise(x))
    (message,) = caplog.messages
    assert "is to lie in [-1, 1]" in message and "preprocess()" in message
    for encode in (tok.encode, vae.posterior):  # each of them says it
        checks._said.clear()
        caplog.clear()
        encode(normalise(x))
        assert caplog.messages == [message]


def test_arrays_of_numpy_are_encoded_and_decoded() -> None:
    tok, x = tokenizer(), pictures(2, 3, 16, 16)
    codes = tok.encode(x)
    for array in (x.numpy(), x.numpy()[::-1][::-1], x.numpy().astype(">f4")):
        assert torch.equal(tok.encode(array), codes)
    expected = tok.decode(codes)
    for kind in (torch.int32, torch.uint8, torch.int16, torch.uint16):
        assert torch.equal(tok.decode(codes.to(kind)), expected)
    for name in ("int64", "int32", "uint16", "uint8", "uint64", ">i4"):
        assert torch.equal(tok.decode(codes.numpy().astype(name)), expected)
    with pytest.raises(ValueError, match=r"expected codes .*int64, got .*float32"):
        tok.decode(codes.float())
    with pytest.raises(ValueError, match=r"expected codes .*bool"):
        tok.decode(codes > 3)
    with pytest.raises(ValueError, match=r"float in \[-1, 1\], got torch.uint8; preprocess\(\)"):
        tok.encode(np.zeros((1, 3, 8, 8), np.uint8))
    for call in (tok.encode, tok.decode):
        with pytest.raises(TypeError, match=r"expected (x|codes) .*tensor.*numpy array, got str"):
            call("a.png")


def test_input_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    check = network.check_input

    def counted(x: Any, *rest: Any) -> None:
        asked.append(tuple(x.shape))
        check(x, *rest)

    monkeypatch.setattr(network, "check_input", counted)
    tok, vae, sound = tokenizer(), tokenizer("gaussian"), codec()
    for chunk in (model.CHUNK, 500):  # of sound; the second time in several
        monkeypatch.setattr(model, "CHUNK", chunk)
        for call, x in (
            *((f, pictures(2, 3, 16, 16)) for f in (tok, tok.encode, vae, vae.posterior)),
            *((f, sounds(2, 1, 800)) for f in (sound.encode, lambda x: sound.encode(x, [800, 500]))),
        ):
            asked.clear()
            call(x)
            assert asked == [tuple(x.shape)]
    asked.clear()
    list(sound.encode_stream([sounds(1, 1, 400)] * 2))
    assert asked == [(1, 1, 400)] * 2


def test_lengths_in_every_form() -> None:
    tok, x = codec(), sounds(2, 1, 800)
    lengths = torch.tensor([800, 500])
    expected = tok.encode(x, lengths=lengths)
    for given in ([800, 500], (800, 500), lengths.numpy(), lengths.int(), lengths.numpy().astype(np.uint16)):
        assert torch.equal(tok.encode(x, lengths=given), expected)
        assert torch.equal(tok.code_lengths(given), tok.code_lengths(lengths))
    with pytest.raises(ValueError, match=r"expected lengths \(2,\) int64, got .*float"):
        tok.encode(x, lengths=[800.0, 500.0])


def test_tensors_of_pictures_are_preprocessed() -> None:
    tok = tokenizer()
    pixels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = pixels.float() / 127.5 - 1
    torch.testing.assert_close(tok.preprocess(pixels), expected)
    torch.testing.assert_close(tok.preprocess([pixels[0], pixels[1].permute(1, 2, 0).numpy()]), expected)
    for wrong in (pixels.float() / 255, pixels[0, 0], pixels.permute(0, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"uint8 \(C, H, W\).*got torch\..*\(255 \* x\)"):
            tok.preprocess(wrong)


def test_codes_of_a_prior_in_every_form(prior: Prior) -> None:
    codes = random_codes(PICTURE, 2)
    expected = prior.nll(codes, 1)
    prefix = prior.sample(2, 1, codes[:, :, :1], generator=3)
    array, mask = codes.numpy(), torch.arange(4).expand(3, -1) == 2
    filled = prior.inpaint(codes, mask, generator=3)
    arrays = (array, array.astype(np.uint16), array.astype(np.uint64), array.astype(">i4"))
    for given in (codes.int(), codes.to(torch.uint16), *arrays, array[::-1].copy()[::-1]):
        assert torch.equal(prior.nll(given, 1), expected)
        assert torch.equal(prior.sample(2, 1, given[:, :, :1], generator=3), prefix)
        assert torch.equal(prior.likelihood(given, 1).nats, prior.likelihood(codes, 1).nats)
        assert torch.equal(prior.inpaint(given, mask, generator=3), filled)
        assert torch.equal(prior(given).nll, prior(codes).nll)
        more = prior.sample_long(2, 5, 1, given[:, :, :1], generator=3)
        assert torch.equal(more, prior.sample_long(2, 5, 1, codes[:, :, :1], generator=3))
    with pytest.raises(TypeError, match="codes: expected a tensor or numpy array of integers, got list"):
        prior.nll(codes.tolist())
    with pytest.raises(ValueError, match=r"codes: expected int64 .*float64"):
        prior.nll(codes.numpy() * 1.0)


def test_labels_in_every_form(prior: Prior) -> None:
    codes = random_codes(PICTURE, 2)
    for same in (
        [1, np.int64(1), np.uint8(1), torch.tensor(1), np.array(1), ["cat", "dog", "owl"][1], np.str_("dog")],
        [[0, 2], ("cat", "owl"), [np.int32(0), torch.tensor(2)], torch.tensor([0, 2]).to(torch.uint8)],
        [[0, 2], np.array([0, 2]), np.array([0, 2], np.uint16), np.array(["cat", "owl"])],
    ):
        expected = prior.nll(codes, same[0])
        for label in same[1:]:
            assert torch.equal(prior.nll(codes, label), expected), label
    for wrong in (1.0, np.float32(1), [0.5, 1], {"cat": 1}):
        with pytest.raises(TypeError, match=r"label: expected .*name .*number, got"):
            prior.nll(codes, wrong)


def test_no_codes_have_no_likelihood(prior: Prior) -> None:
    codes = random_codes(PICTURE, 2)[:0]
    for label in (None, 1, []):
        assert prior.nll(codes, label).shape == (0,)
    assert prior.likelihood(codes).entropy.shape == codes.shape
    with pytest.raises(ValueError, match=r"codes: expected 1 example .*got 0"):
        prior(codes)


def test_seeds_stand_for_generators(prior: Prior) -> None:
    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    assert torch.equal(prior.sample(2, generator=5), prior.sample(2, generator=seeded(5)))
    each = prior.sample(2, generator=[seeded(5), seeded(6)])
    for seeds in ([5, 6], np.array([5, 6])):
        assert torch.equal(prior.sample(2, generator=seeds), each)
    for seed in (0, np.int64(0)):
        a, b = (prior.interpolate("cat", "dog", 3, generator=g) for g in (seed, seeded(0)))
        assert torch.equal(a, b)
        a, b = (prior.sample_long(2, 5, generator=g) for g in (seed, seeded(0)))
        assert torch.equal(a, b)
    posterior = tokenizer("gaussian").posterior(pictures(2, 3, 16, 16))
    for seed in (0, np.int64(0)):
        assert torch.equal(posterior.sample(seed), posterior.sample(seeded(0)))
    for call in (lambda: prior.sample(1, generator=0.5), lambda: posterior.sample(0.5)):  # type: ignore[arg-type]
        with pytest.raises(
            TypeError, match=r"generator: expected a torch.Generator or a seed \(int\), got float"
        ):
            call()
