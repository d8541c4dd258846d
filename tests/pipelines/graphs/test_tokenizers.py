"""Graphs of tokenizers of every modality and bottleneck: onnxruntime gives the codes, posteriors, pictures
and sound that torch gives, for any batch and size.

Left out: the script and its files (scripts/test_export.py).
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.export import export_tokenizer
from pipelines.graphs import agreement
from pipelines.graphs.agreement import Session, compare_tokenizer, require_ties
from pipelines.graphs.files import Port, to_onnx, write
from pipelines.graphs.networks import check_exportable, padding_of, plain_nearest
from tests.helpers.tiny import VARIANTS, codec, image_config, latents, pictures, sounds, tokenizer, trained
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.bottlenecks import Bottleneck, kinds
from tokenizer.modalities.series import SeriesConfig
from tokenizer.search import nearest


class Codes(nn.Module):
    """Codes of several bottlenecks, and what they decode to."""

    def __init__(self, bottlenecks: list[Bottleneck]) -> None:
        super().__init__()
        self.bottlenecks = nn.ModuleList(bottlenecks)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        found = []
        parts = z.split([b.in_dim for b in self.bottlenecks], dim=1)
        for bottleneck, part in zip(self.bottlenecks, parts, strict=True):
            assert isinstance(bottleneck, Bottleneck)
            codes = bottleneck.encode(part)
            found += [codes, bottleneck.decode(codes)]
        return tuple(found)


DISCRETE = [
    *(k for k in kinds() if k != "gaussian"),
    *(v for v in VARIANTS if not v.startswith("vq-gradient") and v != "vq-rotation"),
]


def test_every_bottleneck(tmp_path: Path) -> None:
    """All in one graph, and without encoders and decoders: whole tokenizers take seconds each."""
    made = [trained(kind).eval() for kind in DISCRETE]
    data = torch.cat([latents(b, 3, 67, seed=1) for b in made], dim=1)
    inputs, outputs = [Port("z", (("batch", 1), data.shape[1], ("t", 1)))], []
    for kind, b in zip(DISCRETE, made, strict=True):
        for name, channels in (("codes", b.num_codebooks), ("z_q", b.out_dim)):
            outputs.append(Port(f"{name}_{kind}", (("batch", 1), channels, ("t", 1))))
    model = to_onnx(Codes(made), "bottlenecks.onnx", [data[:2, :, :5]], inputs, outputs)
    write(model, tmp_path / "bottlenecks.onnx")
    found = iter(Session(tmp_path / "bottlenecks.onnx")(data))
    parts = data.split([b.in_dim for b in made], dim=1)
    for kind, bottleneck, z in zip(DISCRETE, made, parts, strict=True):
        expected = bottleneck.encode(z)
        assert (torch.from_numpy(next(found)) == expected).all(), kind
        z_q = torch.from_numpy(next(found))
        torch.testing.assert_close(z_q, bottleneck.decode(expected), rtol=1e-5, atol=1e-5, msg=kind)


@pytest.mark.parametrize("kind", DISCRETE)
def test_gaps_are_those_of_the_nearest_entry(kind: str) -> None:
    """0 for a bottleneck's own codes, more for others."""
    bottleneck = trained(kind).eval()
    z = latents(bottleneck, 3, 4, 5)
    codes = bottleneck.encode(z)
    assert (bottleneck.gaps(z, codes) == 0).all()
    other = codes.clone()
    other[0, -1, 0, 0] = (other[0, -1, 0, 0] + 1) % bottleneck.codebook_size
    gaps = bottleneck.gaps(z, other)
    assert gaps.shape == codes.shape and 0 < float(gaps[0, -1, 0, 0]) <= 1 and (gaps > 0).sum() == 1


def series() -> Tokenizer:
    torch.manual_seed(0)
    modality = SeriesConfig(channels=2, strides=(2, 3), widths=(4, 6), blocks=(1, 0))
    return Tokenizer(TokenizerConfig(modality, losses={"l2": 1.0})).eval()


WHOLE = {
    "pictures of a VAE": (lambda: tokenizer("gaussian", channels=3), lambda b, n: pictures(b, 3, n, n + 3)),
    "sound, waveform": (
        lambda: codec("vq", strides=(4,), widths=(6,), blocks=(1,)),
        lambda b, n: sounds(b, 1, 7 * n),
    ),
    "sound, frames": (lambda: codec("vq", network="frames", depth=1), lambda b, n: sounds(b, 1, 50 * n)),
}
SLOW = {
    "sound of rvq, causal": (lambda: codec("rvq", causal=True), lambda b, n: sounds(b, 1, 50 * n)),
    "frames, causal": (
        lambda: codec("rvq", network="frames", causal=True),
        lambda b, n: sounds(b, 1, 50 * n),
    ),
    "series": (series, lambda b, n: sounds(b, 2, n)),
    "pictures": (lambda: tokenizer("grouped", channels=3), lambda b, n: pictures(b, 3, n, n + 3)),
}


@pytest.mark.parametrize("name", [*WHOLE, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_whole_tokenizers(name: str, tmp_path: Path) -> None:
    make, data = (WHOLE | SLOW)[name]
    tok = make()
    info = export_tokenizer(tok, tmp_path, [data(3, 21), data(1, 8)])
    checked = info["tokenizer"]["checked"]
    assert checked["items"] == 4 and checked["decoder_largest_difference"] < 1e-5
    assert checked.get("positions_that_differ", 0) == 0
    assert info["tokenizer"]["fingerprint"] == tok.fingerprint()
    # Another model with the same networks does not agree.
    with torch.no_grad():
        next(tok.decoder.parameters()).mul_(1.5)
    files = [Session(tmp_path / f"{part}.onnx") for part in ("encoder", "decoder")]
    with pytest.raises(ValueError, match=r"decoder\.onnx: x_hat differs .* Nothing was written"):
        compare_tokenizer(tok, *files, [data(1, 8)])


def test_the_plain_search_is_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(n, 5, generator=generator) + 30 for n in (300, 40))
    for distance in ("euclidean", "cosine"):
        assert (plain_nearest(z, codebook, distance) == nearest(z, codebook, distance)).all()


def test_codes_may_differ_in_few_near_ties_only() -> None:
    require_ties(1, 1000, 9e-6)
    for differing, widest in ((2, 9e-6), (1, 2e-5)):
        with pytest.raises(ValueError, match=f"{differing} of 1000 positions"):
            require_ties(differing, 1000, widest)


def test_a_wrong_code_is_seen(tmp_path: Path) -> None:
    tok = tokenizer("vq", channels=3)

    class Wrong(Session):
        def __init__(self) -> None:
            """Not of a file."""

        def __call__(self, *values: object) -> list[np.ndarray]:
            x = values[0]
            assert isinstance(x, Tensor)
            if x.is_floating_point():
                codes = tok.encode(x)
                codes[0, 0, 0, 0] = (codes[0, 0, 0, 0] + 1) % tok.codebook_size
                return [codes.numpy()]
            return [tok.decode(x).numpy()]

    with pytest.raises(ValueError, match=r"1 of 32 positions .* expected at most 0\.001"):
        compare_tokenizer(tok, Wrong(), Wrong(), [pictures(2, 3, 16, 16)])
    with pytest.raises(ValueError, match=r"nothing to check .* --data\.path"):
        compare_tokenizer(tok, Wrong(), Wrong(), [])
    assert agreement.MOST_TIES == 1e-3 and agreement.NEAR_TIE == 1e-5


def test_what_cannot_be_exported_is_named() -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * int(x.sum().item() > 0)

    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).real

    port = Port("x", (("batch", 1), 3, 3))
    for layer in (Looks(), Unknown()):
        network = nn.Sequential(nn.Linear(3, 3), layer)
        with pytest.raises(ValueError, match=r"encoder\.onnx cannot be exported: layer 1: "):
            to_onnx(network, "encoder.onnx", [torch.eye(3).expand(2, 3, 3)], [port], [port])
    with pytest.raises(ValueError, match=r"is bfloat16.*float32.*save_pretrained"):
        check_exportable(tokenizer("vq").bfloat16(), "runs/tok")


def test_padding_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizer("vq")
    assert (padding_of(tok), padding_of(codec("rvq"))) == ("edge", "constant")
    kind = type(image_config().build())
    monkeypatch.setattr(kind, "pad", lambda self, x: nn.functional.pad(x, (0, 3, 0, 3), mode="reflect"))
    with pytest.raises(ValueError, match=r"ImageModality\.pad adds neither zeros nor copies"):
        padding_of(tok)
