"""No operation of a tokenizer mixes devices: networks, losses, spectra, bottlenecks and streams on a GPU that
is not there, with the CPU's values.

Left out: training's own parts (pipelines/training/test_one_device.py), and priors (prior/test_devices.py).
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.helpers.gpu import on_gpu, pretended_gpu, values_of
from tests.helpers.tiny import (
    audio_config,
    bottleneck_config,
    codec,
    image_config,
    latents,
    pictures,
    sounds,
    tokenizer,
)
from tests.tokenizer.bottlenecks.test_contract import KINDS
from tests.tokenizer.discriminators.test_contract import KINDS as JUDGES
from tests.tokenizer.discriminators.test_contract import data, jury
from tokenizer import Tokenizer, TokenizerConfig, distributed, model
from tokenizer.adversarial import decoder_loss, differentiable_view, discriminator_loss, feature_matching
from tokenizer.anti_aliased import Blur
from tokenizer.bottlenecks import Bottleneck
from tokenizer.discriminators import Jury
from tokenizer.distributed import Step
from tokenizer.losses import LOSSES
from tokenizer.modalities import ModalityConfig
from tokenizer.modalities.series import SeriesConfig
from tokenizer.perceptual import Perceptual
from tokenizer.search.exact import CentredCodebook
from tokenizer.spectral import log_mel
from tokenizer.streaming import DecodeStream, EncodeStream

RATE = 16000


def same(found: Any, expected: Any) -> None:
    """What was computed there is what is computed here."""
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, check_stride=False)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def whole(output: Any) -> Tensor:
    """One number of all that is to have a gradient."""
    return sum((v for v in output.losses.values() if v.requires_grad), output.z_q.square().mean())


def test_what_mixes_devices_is_found() -> None:
    with pretended_gpu():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        weight = torch.ones(3, 2).to("cuda").requires_grad_()
        (there @ weight).sum().backward()
        assert on_gpu(weight.grad) and not on_gpu(there, here) and there.is_cuda
        assert (there * torch.tensor(2.0)).sum().item() == 6 and there.nonzero().tolist() == [[0], [1], [2]]
        index = torch.tensor([0, 2])
        assert on_gpu(there[index])
        mixing: list[Callable[[], object]] = [
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[index.to("cuda")],
            lambda: there.index_put_((index,), here[index]),
            lambda: torch.rand(3, generator=torch.Generator(), device="cuda"),
            lambda: there.uniform_(generator=torch.Generator()),
            lambda: torch.ops.tokenloom.nearest(there[None], here[None], "euclidean"),
            lambda: nn.functional.linear(there, torch.ones(2, 3)),
        ]
        for mix in mixing:
            with pytest.raises(RuntimeError, match="device"):
                mix()


MODALITIES: dict[str, tuple[ModalityConfig, Tensor]] = {
    "image": (image_config(), pictures(2, 3, 18, 16)),
    "audio": (audio_config(blocks=(0, 1, 0)), sounds(2, 1, 130)),
    "audio-causal": (
        audio_config(blocks=(0, 1, 0), causal=True, activation="elu", weight_norm=True),
        sounds(2, 1, 120),
    ),
    "series": (SeriesConfig(widths=(4, 6, 8), blocks=(0, 1, 0)), sounds(2, 3, 41)),
}


@pytest.mark.parametrize("name", MODALITIES)
def test_networks(name: str) -> None:
    config, x = MODALITIES[name]
    torch.manual_seed(0)
    here = Tokenizer(TokenizerConfig(config, bottleneck_config("gaussian"), {"l2": 1.0})).train()
    there, step = copy.deepcopy(here), Step(0, 0, 0, len(x))
    expected = here(x, step)
    sum(expected.losses.values()).backward()
    with pretended_gpu() as gpu:
        gpu.module(there)
        output = there(gpu.tensor(x), step)
        sum(output.losses.values()).backward()
        assert on_gpu(output, gradients(there))
        posterior = there.posterior(gpu.tensor(x))
        for seed in (None, 3):
            assert on_gpu(there.decode_latents(posterior.sample(seed)))
        found = values_of((output, gradients(there)))
    same(found[0].x_hat, expected.x_hat)
    same(found[1], gradients(here))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses(name: str) -> None:
    sound = LOSSES[name].modality == "audio"
    make = (lambda seed: sounds(2, 1, 2400, seed)) if sound else (lambda seed: pictures(2, 3, 16, 16, seed))
    x, x_hat, rate = make(0), make(1), (RATE,) if sound else ()
    expected = LOSSES[name].function(x_hat, x, *rate)
    with pretended_gpu() as gpu:
        x_hat = gpu.tensor(x_hat.requires_grad_())
        loss = LOSSES[name].function(x_hat, gpu.tensor(x), *rate)
        loss.backward()
        assert on_gpu(loss, x_hat.grad)
        found = values_of(loss)
    same(found, expected)


def test_spectra_and_the_perceptual_distance() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), Blur(4), nn.Conv2d(4, 5, 3)
    perceptual = Perceptual(nn.Sequential(*layers), [0, 1, 3])
    x, y, sound = pictures(2, 3, 8, 8), pictures(2, 3, 8, 8, seed=1), sounds(1, 2, 3000)
    expected = log_mel(sound, RATE), perceptual(x, y)
    with pretended_gpu() as gpu:
        gpu.module(perceptual)
        pair = gpu.tensor(x.requires_grad_()), gpu.tensor(y)
        output = log_mel(gpu.tensor(sound), RATE), perceptual(*pair)
        output[1].backward()
        assert on_gpu(output, pair[0].grad)
        found = values_of(output)
    same(found, expected)


def judged(net: Jury, x: Tensor) -> Tensor:
    """What a decoder and discriminators pay together, for x and its negative."""
    if net.config.modality == "image":
        x = differentiable_view(x, Step(0, 3, 0, len(x)), "data")
    of_x, of_x_hat = net(x), net(-x)
    loss, accuracy = discriminator_loss("hinge", of_x, of_x_hat)
    return loss + accuracy + decoder_loss("least_squares", of_x_hat) + feature_matching(of_x, of_x_hat)


@pytest.mark.parametrize("kind", JUDGES)
def test_discriminators(kind: str) -> None:
    here, x = jury(kind), data(kind, batch=1)
    there, expected = copy.deepcopy(here), judged(here, x)
    with pretended_gpu() as gpu:
        gpu.module(there)
        x = gpu.tensor(x.requires_grad_())
        loss = judged(there, x)
        loss.backward()
        assert on_gpu(loss, x.grad, gradients(there))
        found = values_of(loss)
    same(found, expected)


def course(bottleneck: Bottleneck, batches: list[Tensor]) -> list[Any]:
    """A training of a step for each batch, the last one without a place in a run, and gradients of each."""
    outputs = []
    for index, z in enumerate(batches):
        bottleneck.zero_grad()
        torch.manual_seed(1)
        output = bottleneck(z, Step(0, index, 0, 8) if index + 1 < len(batches) else None)
        whole(output).backward()
        outputs.append((output, z.grad, gradients(bottleneck)))
    return outputs


def evaluation(bottleneck: Bottleneck, z: Tensor) -> tuple[Any, ...]:
    """What a frozen one gives, with its gradient, and both ways of coding."""
    bottleneck.eval().zero_grad()
    output = bottleneck(z)
    whole(output).backward()
    output = output, z.grad, bottleneck.frozen(z, Step(0, 9, 0, len(z)))
    if not bottleneck.num_codebooks:
        return output
    codes = bottleneck.encode(z)
    both = bottleneck.decode(codes), bottleneck.compared(z)
    return *output, codes, bottleneck.encode_first(z, 1), *both


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What a bottleneck says to other processes, which here say nothing."""
    tensors = list[Tensor]()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, lambda tensor, **_: tensors.append(tensor))
    return tensors


FEW = pytest.param("vq", {"codebook_size": 120}, id="vq-of-few-vectors")  # in its start, fewer than entries


@pytest.mark.parametrize(("kind", "changes"), [*(pytest.param(kind, {}, id=kind) for kind in KINDS), FEW])
def test_bottlenecks(kind: str, changes: dict[str, int], said: list[Tensor]) -> None:
    torch.manual_seed(0)
    here = bottleneck_config(kind, **changes).build().train()
    there = copy.deepcopy(here)
    steps = (4 if kind.startswith("rvq") else 2) + 1  # a start by k-means, stage after stage, and one more
    batches = [latents(here, 8, 3, 2, seed=index).requires_grad_() for index in range(steps)]
    last = latents(here, 3, 2, 3, seed=9).requires_grad_()
    expected, expected_events = (
        (course(here, batches), here.state_dict(), evaluation(here, last)),
        here.events(),
    )
    with pretended_gpu() as gpu:
        gpu.module(there)
        said.clear()
        outputs = course(there, [gpu.tensor(z) for z in batches])
        assert on_gpu(said) if there.num_codebooks else not said
        assert all(tensor.is_contiguous() for tensor in said)  # or NCCL refuses it
        assert there.ready
        assert there.events() == expected_events
        state = there.training_state()
        there.load_training_state({name: value.to("cpu") for name, value in state.items()})
        assert not state or on_gpu(there.training_state())
        outputs = outputs, there.state_dict(), evaluation(there, gpu.tensor(last))
        assert on_gpu(outputs)
        vectors = there.codebook_vectors()
        assert vectors is None or vectors.device.type == "cpu"  # for plots
        found = values_of(outputs)
    same(found, expected)


def test_encoding_and_decoding_of_pictures() -> None:
    tok, x = tokenizer("vq"), pictures(3, 3, 30, 31)
    codes, x_hat = tok.encode(x), tok.decode(tok.encode(x), (30, 31))
    with pretended_gpu() as gpu:
        gpu.module(tok)
        found = tok.encode(gpu.tensor(x))
        found = found, tok.decode(found, (30, 31))
        assert on_gpu(found) and tok.device == found[0].device
        found = values_of(found)
    same(found, (codes, x_hat))


def test_encoding_and_decoding_of_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    tok, x, lengths = codec(blocks=(0, 1, 0)), sounds(2, 1, 400), [400, 130]
    codes = tok.encode(x, lengths)
    with pretended_gpu() as gpu:
        gpu.module(tok)
        there = gpu.tensor(x)
        found = tok.encode(there, lengths)
        encoding, decoding = EncodeStream(tok), DecodeStream(tok)
        parts = [
            encoding.push(there[..., :7]),
            encoding.push(there[..., 7:333]),
            encoding.push(there[..., 333:]),
        ]
        streamed = torch.cat([*parts, encoding.finish()], dim=2)
        sound = torch.cat(
            [decoding.push(streamed[..., :2]), decoding.push(streamed[..., 2:]), decoding.finish()], 2
        )
        monkeypatch.setattr(model, "CHUNK", 480)  # what is longer goes in chunks
        long = tok.encode(there, torch.tensor(lengths)), tok.decode(streamed)
        assert on_gpu(found, streamed, sound, long)
        found, streamed, long = values_of((found, streamed, long))
    same(found, codes)
    same(streamed[:1], codes[:1])
    same(long[0], codes)


@pytest.mark.parametrize("spread", [1.0, 1e-9])
def test_the_search(spread: float) -> None:
    """Its tiles too; the second codebook has entries that float32 cannot tell apart."""
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(n, 4, generator=generator) for n in (40, 12))
    codebook = torch.cat([1 + spread * codebook, 1 + spread * codebook])
    expected = CentredCodebook(codebook).search(z)
    with pretended_gpu() as gpu:
        codes = CentredCodebook(gpu.tensor(codebook)).search(gpu.tensor(z))
        assert on_gpu(codes)
        found = values_of(codes)
    same(found, expected)
