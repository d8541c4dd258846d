"""Give a trained VAE codes, without training: `python pipelines/quantize_vae.py --tokenizer DIR --output
DIR`.

Left out: training a VAE for its codes, which is the bottleneck `gaussian_quant` of `train_tokenizer.py`.
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import logging
import math
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from einops import reduce
from torch import Tensor

from pipelines.data.batches import Splits, load_splits
from pipelines.data.config import DataConfig
from pipelines.data.kinds import Split
from pipelines.evaluation.tokenizers import Measured, measure_tokenizer
from pipelines.reports.tokenizers import write_results
from pipelines.run.command_line import parse, run
from pipelines.run.folder import require_writable
from pipelines.run.models import load_tokenizer, public_name
from pipelines.run.processes import load_alike, meet, on_main, plain_accelerator, sum_over_processes
from pipelines.run.publishing import check_push, license_note, license_of, push
from tokenizer import Tokenizer
from tokenizer.hub.model import USUAL, CardInfo
from tokenizer.variants import at_least, require

logger = logging.getLogger(__name__)

# Of the sizes chosen here; search and, above all, a prior's vocabulary grow with N.
LARGEST = 1 << 16


@dataclass(frozen=True)
class QuantizeOptions:
    """Options of quantize_vae.py."""

    tokenizer: str = "runs/vae"
    """Folder or Hub id of a VAE (bottleneck gaussian)."""
    output: Path = Path("runs/vae-codes")
    """Hub-ready folder for the tokenizer with codes."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data to measure on: their held-out part, or all if none is held out."""
    codebook_size: int | None = None
    """Entries of the codebook. Left out: the smallest power of two with `margin` bits more than the mean KL
    of a group, at most 65536."""
    group_dim: int = 1
    """Channels that share a code. More channels keep more at equal bits, but need a larger codebook."""
    margin: float = 2.0
    """Bits per code above the KL of a group, where the codebook's size is left out. With 2, codes are
    rebuilt about as well as a sample of the posterior."""
    seed: int = 0
    """Decides the codebook."""
    batch_size: int = 128
    """Pictures per forward pass and process; sound goes clip by clip."""
    license: str = USUAL
    """Licence of the model, as the Hub names it; mind the licence of your data. apache-2.0 gives way to that
    of the tokenizer which the model is made of, or whose codes it learns."""
    push_to_hub: str = ""
    """Hub repository (user/name) that the tokenizer is uploaded to."""
    push_private: bool = False
    """Make that repository private, if it is not there yet."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "group_dim")
        at_least(self, 0, "margin")
        size = self.codebook_size
        require(size is None or size >= 2, f"codebook_size is {size}, expected 2 or more")


def main() -> None:
    """Measure the KL, choose a codebook, measure again, write the folder."""
    options = parse(QuantizeOptions, __doc__ or "")
    accelerator = plain_accelerator(options)
    on_main(accelerator, lambda: require_writable(options.output))
    if (options.output / "config.json").exists():
        raise ValueError(
            f"{options.output} already holds a model; choose another --output or delete that folder"
        )
    vae = load_tokenizer(options.tokenizer).to(accelerator.device)
    if vae.bottleneck.num_codebooks:
        raise ValueError(f"{options.tokenizer} has codes already: encode_dataset.py makes tokens with it")
    if vae.bottleneck.out_dim % options.group_dim:
        raise ValueError(
            f"--group-dim {options.group_dim} does not divide the VAE's {vae.bottleneck.out_dim} channels"
        )
    check_push(accelerator, options)
    splits = load_alike(
        accelerator, "the data", lambda: load_splits(options.data, vae.modality), Splits.digest
    )
    examples = splits.held_out if len(splits.held_out) else splits.train
    if not len(splits.held_out):
        logger.warning("nothing is held out in %s: measuring on all of it", options.data.path)
    bits = kl_bits(vae, examples, accelerator, options.group_dim, options.batch_size)
    logger.info("%s", bits_in_words(bits))
    size = options.codebook_size or chosen_size(bits, options.margin)
    tok = vae.quantized(size, options.group_dim, options.seed)
    before = measure_tokenizer(vae, examples, accelerator, options.batch_size, thorough=True).headline()
    measured = measure_tokenizer(tok, examples, accelerator, options.batch_size, thorough=True)
    after = measured.headline()
    metrics = {**after, "kl_bits_per_code": float(bits.mean())}
    metrics |= {f"posterior_mean_{k}": v for k, v in before.items() if k in after}
    if accelerator.is_main_process:
        write_model(options, tok, splits, metrics, measured)
    push(accelerator, options)
    meet(accelerator)
    accelerator.end_training()


@torch.no_grad()
def kl_bits(
    vae: Tokenizer, examples: Split, accelerator: Accelerator, group_dim: int, batch_size: int
) -> Tensor:
    """The mean KL of each group of channels, in bits, over all positions of `examples`: (K,) float64."""
    sums, positions = torch.zeros(vae.bottleneck.out_dim // group_dim, dtype=torch.float64), 0
    for x, _ in examples.inputs(batch_size, accelerator.process_index, accelerator.num_processes):
        nats = vae.posterior(x.to(accelerator.device)).kl_by_channel().double()
        sums += reduce(nats, "b (k m) ... -> k", "sum", m=group_dim).cpu() / math.log(2)
        positions += nats[:, 0].numel()
    totals = sum_over_processes(accelerator, torch.cat([sums, sums.new_tensor([positions])]))
    if totals[-1] == 0:
        raise ValueError("there is nothing to measure the KL on; give other data with --data.path")
    return totals[:-1] / totals[-1]


def bits_in_words(bits: Tensor) -> str:
    """What the KL of the groups (K,) asks for."""
    each = ", ".join(f"{float(b):.2f}" for b in bits[:16]) + (", ..." if len(bits) > 16 else "")
    return (
        f"KL per code: {float(bits.mean()):.2f} bits ({each}), so a codebook of "
        f"{2 ** float(bits.mean()):.0f} entries or more loses little"
    )


def chosen_size(bits: Tensor, margin: float) -> int:
    """The smallest power of two with `margin` bits more than the mean of `bits` (K,); a warning if capped."""
    wanted = math.ceil(float(bits.mean()) + margin)
    size = min(LARGEST, 1 << max(1, wanted))
    if size < 1 << max(1, wanted):
        logger.warning(
            "2^%d entries would be needed, capped at %d: expect a loss; train the VAE with a higher "
            "--model.bottleneck.kl-weight, or take a smaller --group-dim",
            wanted,
            size,
        )
    return size


def write_model(
    options: QuantizeOptions,
    tok: Tokenizer,
    splits: Splits,
    metrics: dict[str, float],
    measured: Measured,
) -> None:
    """The Hub-ready folder: model, card, metrics and pictures, or sounds."""
    options.output.mkdir(parents=True, exist_ok=True)
    write_results(tok, splits, measured, options.output)
    examples = splits.held_out if len(splits.held_out) else splits.train
    note = license_note(public_name(options.tokenizer), tok.license, "Its weights are of")
    card = CardInfo(
        license=license_of(options.license, tok.license),
        title=f"Tokenizer of {splits.name}, quantized from a VAE",
        datasets=(splits.name,) if options.data.on_hub else (),
        command=shlex.join(["python", "pipelines/quantize_vae.py", *sys.argv[1:]]),
        metrics=metrics,
        notes=f"The VAE {options.tokenizer} with a codebook of {tok.codebook_size} Gaussian draws for every "
        f"{options.group_dim} of its channels, which nothing was trained for; posterior_mean_* are the VAE's "
        f"own measures. Measured on {len(examples)} items.{note}",
    )
    tok.save_pretrained(options.output, card)
    summary = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
    logger.info("%d codes of %g bits: %s", tok.num_codebooks, tok.bits_per_code, summary)
    logger.info("saved to %s", options.output)


if __name__ == "__main__":
    run(main)
