"""The network at the frame rate: its inverse transform, its gradients and arithmetic, and its options.

Left out: chunks, padded batches and lengths (test_streaming.py).
"""

import dataclasses
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.tiny import audio_config, codec, sounds, tokenizer
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.config import DecoderConfig
from tokenizer.decoder_stage import with_decoder
from tokenizer.distributed import Step
from tokenizer.lapped import COMPRESSION, SILENCE, InverseSTFT, Spectrum
from tokenizer.modalities.audio import AudioConfig
from tokenizer.variants import changed_fields, config_from_dict, config_to_dict


def spectra(layer: InverseSTFT, x: Tensor) -> Tensor:
    """The transform that the layer inverts, by torch.fft: x (B, C, t · hop) → (B, C · 2 · bins, 1, t)."""
    steps = x.shape[2] // layer.hop
    frames = F.pad(x, (layer.early, layer.reach)).unfold(2, layer.reach, layer.hop)[:, :, :steps]
    spectrum = torch.fft.rfft(frames * layer.windows()[0])
    parts = torch.cat([spectrum.abs().log(), spectrum.angle()], dim=3)
    return rearrange(parts, "b c t n -> b (c n) 1 t")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hop", [1, 7, 60])
def test_the_transform_is_inverted(hop: int, causal: bool) -> None:
    x = torch.randn(3, 2, 9 * hop, dtype=torch.double, generator=torch.Generator().manual_seed(0)) / 8
    layer = InverseSTFT(2, hop, causal).double()
    torch.testing.assert_close(layer(spectra(layer, x)).squeeze(2), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("causal", "around"), [(False, (3, 3)), (True, (6, 0))])
def test_the_spectrum_is_that_of_torch(causal: bool, around: tuple[int, int]) -> None:
    x = torch.randn(3, 2, 9 * 6, generator=torch.Generator().manual_seed(0)) / 8
    frames = F.pad(x, around).unfold(2, 12, 6) * torch.hann_window(12)
    spectrum = torch.fft.rfft(frames)
    magnitude = (spectrum.abs().square() + SILENCE).sqrt()
    parts = [magnitude.log(), *(p * magnitude ** (COMPRESSION - 1) for p in (spectrum.real, spectrum.imag))]
    expected = rearrange(torch.cat(parts, dim=3), "b c t n -> b (c n) 1 t")
    torch.testing.assert_close(Spectrum(2, 6, causal)(x[:, :, None]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing_before_it(causal: bool) -> None:
    layer = InverseSTFT(1, 6, causal)
    z = torch.randn(2, 2 * layer.bins, 1, 8, generator=torch.Generator().manual_seed(0))
    z[1, :, :, 3:] = torch.nan
    y = layer(z, torch.tensor([8, 3]))
    torch.testing.assert_close(y[1:, :, :, :18], layer(z[1:, :, :, :3]))
    assert torch.equal(y[0], layer(z[:1])[0])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("parts", [[1], [2], [1, 1], [1, 1, 1]])
def test_few_frames_stream_too(parts: list[int], causal: bool) -> None:
    tok = codec(network="frames", causal=causal)
    codes = torch.randint(24, (1, 2, sum(parts)), generator=torch.Generator().manual_seed(0))
    streamed = torch.cat(list(tok.decode_stream(codes.split(parts, dim=2))), dim=2)
    torch.testing.assert_close(streamed, tok.decode(codes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_type(dtype: torch.dtype) -> None:
    tok = codec(network="frames")
    x = sounds(1, 1, 1200)
    expected, z = tok.decode(tok.encode(x)), tok.encoder(x)
    tok.to(dtype)
    assert tok.encode(x.to(dtype)).shape == (1, 2, 20)
    torch.testing.assert_close(tok.encoder(x.to(dtype)).float(), z, rtol=0.1, atol=0.1 * z.abs().max().item())
    assert tok.decode(tok.encode(x.to(dtype))).dtype == dtype and expected.dtype == torch.float32


def test_a_frame_adds_a_wave_under_its_window() -> None:
    layer = InverseSTFT(1, 8, causal=False)
    log_magnitude, phase = torch.full((2, layer.bins), -torch.inf), torch.zeros(2, layer.bins)
    log_magnitude[0, 3], phase[0, 3] = torch.tensor(5.0).log(), 0.7
    log_magnitude[1, 0] = 1e9  # beyond what a signal in [-1, 1] has
    y = layer(torch.cat([log_magnitude, phase], dim=1)[:, :, None, None]).squeeze()
    at = torch.arange(32)
    # Alone, a frame is divided by the square of its own window.
    wave = 2 * 5 / 32 * torch.cos(2 * torch.pi * 3 * at / 32 + 0.7) / torch.hann_window(32)
    torch.testing.assert_close(y[0], wave[12:20], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(y[1], (1 / torch.hann_window(32))[12:20], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_reach_every_weight(causal: bool) -> None:
    tok = codec(network="frames", causal=causal, channels=2).train()
    losses = tok(sounds(2, 2, 1000), Step(0, 0, 0, 2)).losses
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in [*tok.encoder.named_parameters(), *tok.decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


class _Types(TorchDispatchMode):
    """Collects the types of all tensors that operations give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        found = result if isinstance(result, tuple | list) else (result,)
        self.seen |= {t.dtype for t in found if isinstance(t, Tensor)}
        return result


def test_no_number_is_complex() -> None:
    tok = codec(network="frames")
    with _Types() as types:
        tok.decode(tok.encode(sounds(1, 1, 600)))
    assert torch.float32 in types.seen and not any(dtype.is_complex for dtype in types.seen)


class _Encode(nn.Module):
    """x (B, C, t · hop) → codes (B, K, t): encoder and search, without the checks of what goes in."""

    def __init__(self, tok: Tokenizer) -> None:
        super().__init__()
        self.encoder, self.bottleneck = tok.encoder, tok.bottleneck

    def forward(self, x: Tensor) -> Tensor:
        codes: Tensor = self.bottleneck.encode(self.encoder(x))
        return codes


class _Decode(nn.Module):
    """Codes (B, K, t) → x_hat (B, C, t · hop)."""

    def __init__(self, tok: Tokenizer) -> None:
        super().__init__()
        self.bottleneck, self.decoder = tok.bottleneck, tok.decoder

    def forward(self, codes: Tensor) -> Tensor:
        x_hat: Tensor = self.decoder(self.bottleneck.decode(codes))
        return x_hat


class _Fourier(nn.Module):
    """What the networks must not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()


def exported(module: nn.Module, example: Tensor, step: int = 1) -> ExportedProgram:
    """By `torch.export`, for any batch and any number of frames of `step` along the last axis."""
    sizes = {0: Dim("batch"), 2: step * Dim("frames", min=2)}
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=(sizes,))


def types_in(program: ExportedProgram) -> set[torch.dtype]:
    """Of all tensors in a graph and its inner ones: weights, constants and what operations give."""
    graphs = [m for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    values = [node.meta.get("val") for graph in graphs for node in graph.graph.nodes]
    kept = [*program.state_dict.values(), *program.constants.values()]
    return {leaf.dtype for leaf in tree_leaves([values, kept]) if isinstance(leaf, Tensor)}


@pytest.mark.parametrize("causal", [False, True])
def test_both_ways_export_in_real_arithmetic(causal: bool) -> None:
    tok = codec(network="frames", causal=causal, channels=2, depth=1)
    x = sounds(2, 2, 1200)
    encode, decode = exported(_Encode(tok), x, step=60), exported(_Decode(tok), tok.encode(x))
    for program in (encode, decode):
        found = types_in(program)
        assert torch.float32 in found and not any(dtype.is_complex for dtype in found)
    for batch, frames in [(1, 2), (1, 53), (3, 7)]:
        x = sounds(batch, 2, frames * 60, seed=frames)
        codes = tok.encode(x)
        assert torch.equal(encode.module()(x), codes) and codes.unique().numel() > 2
        torch.testing.assert_close(decode.module()(codes), tok.decode(codes), rtol=0, atol=1e-5)
    assert torch.complex64 in types_in(exported(_Fourier(), x))


def test_codes_of_one_network_are_decoded_by_the_other() -> None:
    x = sounds(2, 1, 605)
    for network, decoder in [
        ("waveform", DecoderConfig(network="frames", dim=8, depth=1)),
        ("frames", DecoderConfig(network="waveform", widths=(4, 4, 8), blocks=(0, 1, 1))),
    ]:
        tok = codec(network=network)
        config = dataclasses.replace(tok.config, decoder=decoder)
        assert config_from_dict(TokenizerConfig, config_to_dict(config)) == config
        other = with_decoder(tok, config).eval()
        assert other.fingerprint() == tok.fingerprint()
        codes = tok.encode(x)
        assert torch.equal(other.encode(x), codes)
        assert other.decode(codes, size=605).shape == x.shape
        kinds = [any(isinstance(m, InverseSTFT) for m in t.decoder.modules()) for t in (tok, other)]
        assert kinds == [network == "frames", network == "waveform"]


def test_a_saved_model_has_its_transform(tmp_path: Any) -> None:
    tok = codec(network="frames")
    tok.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    codes = tok.encode(sounds(1, 1, 600))
    assert torch.equal(loaded.decode(codes), tok.decode(codes))
    assert not any("basis" in name for name in tok.state_dict())


def test_new_options_change_no_fingerprint() -> None:
    assert changed_fields(AudioConfig()) == {"kind": "audio"}
    assert changed_fields(AudioConfig(network="frames", dim=8)) == {
        "kind": "audio",
        "network": "frames",
        "dim": 8,
    }


def test_options_without_an_effect_are_refused() -> None:
    for options, message in [
        ({"network": "spectra"}, r"network is 'spectra', expected waveform or frames"),
        ({"dim": 8}, r"dim is 8, which the network waveform does not have; .*choose the network frames"),
        ({"depth": 1}, r"depth is 1, .*choose the network frames"),
        ({"network": "frames", "widths": (8, 8, 8)}, r"widths is .*network frames .*set dim and depth"),
        ({"network": "frames", "blocks": (1, 1, 1)}, r"blocks is .*set dim and depth"),
        ({"network": "frames", "activation": "elu"}, r"activation is elu"),
        ({"network": "frames", "weight_norm": True}, r"weight_norm is True"),
        ({"network": "frames", "dim": 0}, r"dim is 0, expected 1 to 8192"),
        ({"network": "frames", "depth": 65}, r"depth is 65, expected 0 to 64"),
        ({"network": "frames", "strides": (8, 8, 8, 4)}, r"strides are .*product of at most 1024"),
    ]:
        with pytest.raises(ValueError, match=message):
            AudioConfig(**options)
    for modality, decoder, message in [
        (audio_config(), DecoderConfig(dim=8), r"decoder: dim is 8"),
        (audio_config(), DecoderConfig(network="frames", widths=(8, 8, 8)), r"decoder: widths is"),
        (
            tokenizer().config.modality,
            DecoderConfig(network="frames"),
            r"decoder: network is no option .*image",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            TokenizerConfig(modality, decoder=decoder)
