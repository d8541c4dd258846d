"""Sound of any length, in any batch and any chunks: always the codes and samples of the whole alone."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import codec, sounds, tokenizer
from tokenizer import Tokenizer, model
from tokenizer.layers_1d import Conv, Network
from tokenizer.streaming import DecodeStream, EncodeStream

CONFIGS = [
    {"causal": causal, "activation": activation, "channels": channels, "weight_norm": norm}
    for causal, activation, channels, norm in [
        (False, "snake", 1, False),
        (True, "elu", 1, True),
        (True, "snake", 2, False),
    ]
]
CONFIGS += [
    {"causal": causal, "network": "frames", "channels": channels, "strides": (60,)}
    for causal, channels in [(False, 2), (True, 1)]
]
NETWORKS = ["waveform", "frames"]


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
def tok(request: pytest.FixtureRequest) -> Tokenizer:
    return codec(**request.param)


def assert_same_codes(tok: Tokenizer, x: Tensor, codes: Tensor, alone: Tensor) -> None:
    """Codes of x, (1, K, t) twice, are equal but where two entries are as near as rounding can tell, and that
    in at most one frame in 10,000 (rounded up to one)."""
    assert codes.shape == alone.shape
    frames = (codes != alone).any(dim=1)[0].nonzero()[:, 0].tolist()
    assert len(frames) <= max(1, codes.shape[2] // 10_000)
    z = tok.encoder(tok.modality.pad(x))
    for t in frames:
        stage = int((codes != alone)[0, :, t].nonzero()[0])
        before = tok.bottleneck.decode(alone[:, :stage]) if stage else torch.zeros_like(z)
        quantizer = tok.bottleneck.stages[stage]
        row = quantizer.to_rows((z - before)[..., t : t + 1]) - quantizer.codebook.entries.mean(0)
        entries = quantizer.codebook.entries - quantizer.codebook.entries.mean(0)
        distances = (row - entries).square().sum(1)
        (first, second), (nearest, _) = (v[:2] for v in distances.sort())
        assert second - first <= 1e-5 * (row.square().sum() + entries[nearest].square().sum())


@pytest.mark.parametrize("samples", [1, 2, 59, 60, 61, 119, 1234])
def test_every_length_comes_back(tok: Tokenizer, samples: int) -> None:
    x = sounds(2, tok.modality.channels, samples)
    codes = tok.encode(x)
    assert codes.shape == (2, 2, -(-samples // 60))
    assert tok.code_lengths(torch.tensor([samples])).tolist() == [codes.shape[2]]
    assert tok.decode(codes, size=samples).shape == x.shape
    assert torch.equal(tok.decode(codes, size=samples), tok(x).x_hat)


@pytest.mark.parametrize("chunks", [[1] * 300, [7, 0, 1500, 1, 2493], [60] * 67, [4001], [59, 61, 3881]])
def test_chunks_make_the_codes_of_the_whole(tok: Tokenizer, chunks: list[int]) -> None:
    x = sounds(1, tok.modality.channels, sum(chunks), seed=3)
    codes = torch.cat(list(tok.encode_stream(x.split(chunks, dim=2))), dim=2)
    assert_same_codes(tok, x, codes, tok.encode(x))


@pytest.mark.parametrize("parts", [[1] * 40, [13, 1, 26], [40]])
def test_parts_make_the_samples_of_the_whole(tok: Tokenizer, parts: list[int]) -> None:
    codes = torch.randint(24, (2, 2, 40), generator=torch.Generator().manual_seed(0))
    whole = tok.decode(codes)
    x_hat = torch.cat(list(tok.decode_stream(codes.split(parts, dim=2))), dim=2)
    torch.testing.assert_close(x_hat, whole, rtol=1e-4, atol=1e-4 * whole.abs().max().item())


def test_a_padded_batch_gives_each_item_the_codes_it_has_alone(tok: Tokenizer) -> None:
    lengths = torch.tensor([1, 61, 1500, 2000, 777])
    x = sounds(5, tok.modality.channels, 2000)
    codes, frames = tok.encode(x, lengths=lengths), tok.code_lengths(lengths)
    assert codes.shape == (5, 2, 34)
    assert tok.encode(x[:1], lengths=lengths[:1]).shape == (1, 2, 34)
    for row, example, n, t in zip(codes, x, lengths, frames, strict=True):
        assert_same_codes(tok, example[None, :, :n], row[None, :, :t], tok.encode(example[None, :, :n]))
        assert not row[:, t:].any()
    # What stands in the padding does not matter, not even NaN.
    dirty = torch.where(torch.arange(2000) < lengths[:, None, None], x, torch.nan)
    assert torch.equal(tok.encode(dirty, lengths=lengths), codes)
    assert torch.equal(tok.encode(x, lengths=lengths, num_codebooks=1), codes[:, :1])


def test_long_sound_goes_in_chunks_by_itself(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    x, lengths = sounds(2, tok.modality.channels, 3001), torch.tensor([3001, 1300])
    codes, padded = tok.encode(x), tok.encode(x, lengths=lengths)
    x_hat = tok.decode(codes, size=3001)
    monkeypatch.setattr(model, "CHUNK", 1000)
    for i in range(2):
        assert_same_codes(tok, x[i : i + 1], tok.encode(x)[i : i + 1], codes[i : i + 1])
        ours = tok.encode(x, lengths=lengths)[i : i + 1]
        assert_same_codes(
            tok,
            x[i : i + 1, :, : lengths[i]],
            ours[:, :, : 51 if i == 0 else 22],
            padded[i : i + 1, :, : 51 if i == 0 else 22],
        )
    again = tok.decode(codes, size=3001)
    torch.testing.assert_close(again, x_hat, rtol=1e-4, atol=1e-4 * x_hat.abs().max().item())


def test_many_sounds_go_some_at_a_time_and_come_back_in_order(
    tok: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = torch.tensor([130, 600, 59, 1100, 480, 300, 61])
    x = sounds(7, tok.modality.channels, 1100)
    given = {"whole": (x, None), "short": (x[:, :, :480], None), "padded": (x, lengths)}
    expected = {name: tok.encode(*of) for name, of in given.items()}
    x_hat = tok.decode(expected["short"], size=480)
    assert len({tuple(row) for row in expected["short"].flatten(1).tolist()}) == 7  # else no order would show
    monkeypatch.setattr(model, "CHUNK", 1300)  # two of 600 samples at once, one of 1100
    for name, (sound, counts) in given.items():
        codes = tok.encode(sound, counts)
        for i in range(7):
            n = sound.shape[2] if counts is None else int(counts[i])
            t, own = -(-n // 60), slice(i, i + 1)
            assert_same_codes(tok, sound[own, :, :n], codes[own, :, :t], expected[name][own, :, :t])
            assert not codes[i, :, t:].any()
    again = tok.decode(expected["short"], size=480)
    torch.testing.assert_close(again, x_hat, rtol=1e-4, atol=1e-4 * x_hat.abs().max().item())


def tensors(state: object) -> list[Tensor]:
    if isinstance(state, tuple):
        return [t for part in state for t in tensors(part)]
    return [state] if isinstance(state, Tensor) else []


def test_the_state_stays_as_small_as_the_layers_reach(tok: Tokenizer) -> None:
    stream = EncodeStream(tok)
    sizes = []
    for _ in range(12):
        stream.push(sounds(1, tok.modality.channels, 600))
        sizes.append(sum(t.numel() for t in tensors(stream.state)))
    assert len(set(sizes[4:])) == 1
    kept = sum(
        layer.conv.in_channels * layer.reach for layer in tok.encoder.modules() if isinstance(layer, Conv)
    )
    residual = 2 * 8 * sum(layer.reach for layer in tok.encoder.modules() if isinstance(layer, Conv))
    assert sizes[-1] <= kept + residual


@pytest.mark.parametrize("network", NETWORKS)
def test_a_causal_model_lags_by_one_frame(network: str) -> None:
    tok = codec(causal=True, network=network)
    x = sounds(1, 1, 600)
    stream = EncodeStream(tok)
    for i in range(10):
        assert stream.push(x[:, :, 60 * i : 60 * i + 59]).shape[2] == 0
        codes = stream.push(x[:, :, 60 * i + 59 : 60 * i + 60])
        assert torch.equal(codes, tok.encode(x)[:, :, i : i + 1])
    assert stream.finish().shape == (1, 2, 0)
    decoder = DecodeStream(tok)
    assert [decoder.push(codes).shape[2] for _ in range(5)] == [60] * 5


@pytest.mark.parametrize("network", NETWORKS)
def test_a_causal_model_sees_no_later_sample(network: str) -> None:
    tok = codec(causal=True, network=network)
    x = sounds(1, 1, 1200)
    changed = x.clone()
    changed[:, :, 600:] += 1
    assert torch.equal(tok.encode(x)[:, :, :10], tok.encode(changed)[:, :, :10])
    z = torch.randn(1, tok.bottleneck.out_dim, 20)
    other = z.clone()
    other[:, :, 10:] += 1
    assert torch.equal(tok.decode_latents(z)[:, :, :600], tok.decode_latents(other)[:, :, :600])


def test_what_streams_refuse() -> None:
    tok = codec()
    with pytest.raises(ValueError, match=r"chunks: expected a sample .*got none; push"):
        list(tok.encode_stream([]))
    with pytest.raises(ValueError, match=r"chunks: expected a sample .*got none; push"):
        list(tok.encode_stream([torch.zeros(1, 1, 0)]))
    with pytest.raises(ValueError, match=r"codes: expected a frame .*got none; push"):
        list(tok.decode_stream([]))
    with pytest.raises(ValueError, match=r"chunks: expected 1 examples .*got 2; .*new stream"):
        list(tok.encode_stream([torch.zeros(1, 1, 9), torch.zeros(2, 1, 9)]))
    codes = tok.encode(torch.zeros(2, 1, 9))
    with pytest.raises(ValueError, match=r"codes: expected 2 examples .*got 1; .*new stream"):
        list(tok.decode_stream([codes, codes[:1]]))
    with pytest.raises(ValueError, match=r"expected x \(B, 1, T\) .*got \(1, 2, 9\)"):
        list(tok.encode_stream([torch.zeros(1, 2, 9)]))
    stream = EncodeStream(tok)
    stream.push(torch.zeros(1, 1, 9))
    stream.finish()
    with pytest.raises(ValueError, match=r"finished.* new"):
        stream.push(torch.zeros(1, 1, 9))
    with pytest.raises(ValueError, match=r"streams .*sound.*pictures"):
        tokenizer().encode_stream([torch.zeros(1, 3, 8, 8)])
    for lengths, message in [
        (torch.tensor([3]), r"expected lengths \(2,\) int64"),
        (torch.tensor([3.0, 4.0]), r"expected lengths \(2,\) int64"),
        (torch.tensor([0, 4]), r"expected lengths from 1 to 9, got \[0, 4\]"),
        (torch.tensor([4, 10]), r"expected lengths from 1 to 9, got \[4, 10\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            tok.encode(torch.zeros(2, 1, 9), lengths=lengths)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "causal"),
    [
        (k, s, d, c)
        for k, s, d, c in itertools.product((1, 4, 7), (1, 2, 3), (1, 3), (False, True))
        if (k - 1) * d + 1 >= s
    ],
)
def test_a_convolution_keeps_its_rate(kernel: int, stride: int, dilation: int, causal: bool) -> None:
    network = Network([Conv(2, 3, kernel, stride, dilation, causal)])
    x = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(0))
    y = network(x)
    assert y.shape == (1, 3, 24 // stride)
    state, parts = network.start(x), []
    for i, part in enumerate(x.split(5, dim=2)):
        out, state = network.stream(part, state, last=i == 4)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, dim=2), y, rtol=1e-5, atol=1e-6)
