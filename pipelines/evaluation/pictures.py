"""Measures of tokenizers of pictures on held-out data.

Left out: the metrics themselves (`tokenizer.metrics`).
"""

import math

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data.kinds import Split
from pipelines.evaluation.tokenizers import MEASURES, Means, Measured
from pipelines.run.processes import sum_over_processes
from tokenizer import Tokenizer
from tokenizer.bottlenecks.gaussian import GaussianConfig
from tokenizer.distributed import keyed_generator
from tokenizer.metrics import CodeUsage, bernoulli_elbo, bits_per_dim, gaussian_elbo, psnr, ssim


@MEASURES.enter("image")
@torch.no_grad()
def evaluate_pictures(
    tok: Tokenizer, examples: Split, accelerator: Accelerator, batch_size: int, thorough: bool
) -> Measured:
    """Means over pictures, each counted once over all processes: psnr (dB per picture), ssim, l1 and l2 (data
    in [-1, 1]); with codes also usage, perplexity and bits_per_item; for a VAE negative_elbo_nats (per
    picture) and bits_per_dim, from one sample of each posterior, and kl_nats. Leaves the tokenizer in eval
    mode. A picture that can no longer be read does not count; `items` says how many do, if not all.
    `thorough` changes nothing.
    """
    tok.eval()
    means, seen = Means(), 0
    discrete = tok.bottleneck.num_codebooks > 0
    usage = CodeUsage(tok.num_codebooks, tok.codebook_size, device=accelerator.device) if discrete else None
    for x, index in examples.inputs(batch_size, accelerator.process_index, accelerator.num_processes):
        x = x.to(accelerator.device)
        seen += len(x)
        if usage is not None:
            codes = tok.encode(x)
            usage.update(codes)
            means.add("codes_per_item", codes.numel(), len(x))
            values = reconstruction_values(tok.decode(codes, size=tuple(x.shape[2:])), x)
        else:
            values = vae_values(tok, x, index)
        for name, value in values.items():
            means.add(name, float(value.double().sum()), len(x))
    metrics = means.over_processes(accelerator)
    if usage is not None and metrics:
        usage.reduce()
        metrics["usage"] = float(usage.usage().mean())
        metrics["perplexity"] = float(usage.perplexity().mean())
        metrics["bits_per_item"] = metrics.pop("codes_per_item") * tok.bits_per_code
    count = int(sum_over_processes(accelerator, torch.tensor(seen)))
    return Measured(metrics | ({"items": float(count)} if count < len(examples) else {}))


def reconstruction_values(x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Per item: psnr, ssim, l1, l2."""
    error = x_hat.float().clamp(-1, 1) - x
    return {
        "psnr": psnr(x_hat, x),
        "ssim": ssim(x_hat, x),
        "l1": error.abs().flatten(1).mean(1),
        "l2": error.square().flatten(1).mean(1),
    }


def vae_values(tok: Tokenizer, x: Tensor, index: NDArray[np.int64]) -> dict[str, Tensor]:
    """Per item: the reconstruction of the posterior's mean, and the ELBO of one sample under the trained
    likelihood.

    The likelihood is Bernoulli on pictures binarised at 0 if that loss was trained, else the Gaussian with
    the σ for which the training objective is the ELBO: 2σ² = kl_weight / l2 weight.
    """
    posterior = tok.posterior(x)
    size = tuple(x.shape[2:])
    values = reconstruction_values(tok.decode_latents(posterior.mode(), size), x)
    # The noise of an item depends on its index, not on its batch or process.
    noise = [torch.randn(posterior.mean.shape[1:], generator=keyed_generator(int(i), "elbo")) for i in index]
    z = posterior.reparameterise(torch.stack(noise).to(posterior.mean))
    x_hat, kl = tok.decode_latents(z, size), posterior.kl()
    bottleneck, losses = tok.config.bottleneck, tok.config.losses
    assert isinstance(bottleneck, GaussianConfig)
    dims = math.prod(x.shape[1:])
    values = {**values, "kl_nats": kl}
    if losses.get("bernoulli", 0) > 0:
        elbo = bernoulli_elbo(x_hat, x, kl)
        bits = -elbo / dims / math.log(2)
    elif losses.get("l2", 0) > 0 and bottleneck.kl_weight > 0:
        sigma = math.sqrt(bottleneck.kl_weight / 2 / losses["l2"])
        elbo = gaussian_elbo(x_hat, x, kl, sigma)
        bits = bits_per_dim(elbo, dims)
    else:
        return values  # the objective is no ELBO of any likelihood
    return {**values, "negative_elbo_nats": -elbo, "bits_per_dim": bits}
