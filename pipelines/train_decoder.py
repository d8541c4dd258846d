"""Train the decoder of a tokenizer anew, sharper, while every code stays as it is:
`accelerate launch pipelines/train_decoder.py [PRESET] --tokenizer DIR [flags]`.

Tokens and priors of the tokenizer stay valid: at the end all codes of held-out data are compared bit by bit.

Left out: the tokenizer's first training (`train_tokenizer.py`).
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.data.batches import Splits, batches
from pipelines.data.kinds import Split, to_float
from pipelines.data.tables import credit
from pipelines.evaluation.tokenizers import EVAL_BATCH, evaluate_tokenizer, measure_tokenizer
from pipelines.presets import DECODERS
from pipelines.reports.tokenizers import write_tokenizer_report
from pipelines.run.command_line import chosen_preset, parse, run
from pipelines.run.models import load_tokenizer, public_name
from pipelines.run.processes import meet, sum_over_processes
from pipelines.run.publishing import check_push, license_note, license_of, push
from pipelines.training.adversary import Adversary
from pipelines.training.balance import Balance
from pipelines.training.loop import Course
from pipelines.training.options import DecoderTraining
from pipelines.training.run_folder import check_run_folder, command_line, run_on_data
from pipelines.training.setup import optimizers_of, start_accelerator, warn_of_short_run
from pipelines.training.sharding import is_sharded
from tokenizer import Tokenizer
from tokenizer.decoder_stage import DecoderOutput, DecoderStage, begin_as, with_decoder
from tokenizer.devices import send
from tokenizer.discriminators import Jury, JuryConfig
from tokenizer.distributed import Step
from tokenizer.hub.model import CardInfo, HubModel
from tokenizer.losses import validate_weights
from tokenizer.perceptual import Perceptual, load_perceptual

DEFAULT_PRESET = "pictures"
# Folder of the discriminators, beside the model.
DISCRIMINATOR = "discriminator"

logger = logging.getLogger(__name__)


def main() -> None:
    """Read the options, check models, data and folder, train."""
    options = parse(DecoderTraining, __doc__ or "", presets=DECODERS, default_preset=DEFAULT_PRESET)
    accelerator = start_accelerator(options)
    check_options(options, accelerator)
    name = chosen_preset(DEFAULT_PRESET)
    if accelerator.is_main_process:
        warn_of_short_run(options, DECODERS[name].build().max_steps if name else 0)
    check_run_folder(accelerator, options)
    check_push(accelerator, options, resumed=bool(options.resume))
    # Mistakes in the options are found before the data are read and the folder is claimed.
    old = old_tokenizer(options).to(accelerator.device)
    check_preset(name, old)
    losses = chosen_losses(options, old)
    stage = DecoderStage(begin(old, options), losses)
    jury = load_jury(options, old)
    perceptual = None
    if options.perceptual:
        perceptual = load_perceptual(options.perceptual, options.perceptual_download).to(accelerator.device)
    with run_on_data(accelerator, options, old.modality, old.license) as splits:
        train(options, accelerator, splits, old, stage, jury, perceptual)
        push(accelerator, options)
        if options.push_discriminator:
            push(accelerator, options, DISCRIMINATOR)
    accelerator.end_training()


def check_options(options: DecoderTraining, accelerator: Accelerator) -> None:
    """`ValueError` for what this training cannot do."""
    if options.push_discriminator and not (options.push_to_hub and options.adversarial.weight):
        raise ValueError("--push-discriminator has no effect without --push-to-hub and discriminators")
    if not options.tokenizer:
        raise ValueError("give the tokenizer whose decoder is to be trained: --tokenizer DIR, or user/name")
    if accelerator.mixed_precision == "fp16":
        raise ValueError("fp16 has one gradient scaler for decoder and discriminators; use bf16 or no")
    if is_sharded(accelerator):
        raise ValueError(
            "a decoder is trained with whole weights on every process; leave out --config_file, or take one "
            "of several GPUs without FSDP and DeepSpeed"
        )


def old_tokenizer(options: DecoderTraining) -> Tokenizer:
    """The tokenizer whose codes stay."""
    try:
        return load_tokenizer(options.tokenizer)
    except ValueError as error:
        raise ValueError(f"--tokenizer {error}") from error


def check_preset(name: str, old: Tokenizer) -> None:
    """`ValueError` if the preset `name` ("" for none) is for other data than those of the tokenizer."""
    if name and DECODERS[name].timed != old.modality.timed:
        others = " or ".join(n for n, p in DECODERS.items() if p.timed == old.modality.timed)
        raise ValueError(f"the preset {name} is not for {old.modality.name}; take train_decoder.py {others}")


def chosen_losses(options: DecoderTraining, old: Tokenizer) -> Mapping[str, float]:
    """Weights of the reconstruction losses: those asked for, or the tokenizer's own."""
    name = old.modality.name
    if options.perceptual and name != "image":
        raise ValueError("--perceptual is for pictures; sound has the losses mel and stft")
    if not any(options.losses.values()):
        return old.config.losses
    validate_weights(options.losses, name)
    old.config.modality.check_losses({k for k, weight in options.losses.items() if weight > 0})
    return options.losses


def begin(old: Tokenizer, options: DecoderTraining) -> Tokenizer:
    """What is trained: a copy of the tokenizer, with its decoder or the one that the options ask for, which
    begins as the tokenizer's own if it has only more blocks."""
    config = old.config
    if options.decoder != type(options.decoder)():
        config = dataclasses.replace(config, decoder=options.decoder)
    tok = with_decoder(old, config)
    if not begin_as(tok.decoder, old.decoder):
        text = "the decoder is of another shape than that of %s, of whose decoder it takes no weights"
        logger.info(text, options.tokenizer)
    return tok


def load_jury(options: DecoderTraining, old: Tokenizer) -> Jury | None:
    """The discriminators, None where none are asked for; `ValueError` if they are not for the data."""
    modality = old.modality
    if options.adversarial.weight == 0:
        if options.discriminator:
            raise ValueError(
                "--discriminator has no effect with --adversarial.weight 0; leave one of them out"
            )
        return None
    if options.discriminator:
        try:
            jury = Jury.from_pretrained(options.discriminator)
        except ValueError as error:
            raise ValueError(f"--discriminator {error}") from error
        found = (jury.config.modality, jury.config.channels)
        if found != (modality.name, modality.channels):
            raise ValueError(
                f"--discriminator {options.discriminator}: is for {found[0]} of {found[1]} channels, but the "
                f"tokenizer is for {modality.name} of {modality.channels}; leave it out, or give another one"
            )
    else:
        given = options.adversarial
        jury = Jury(JuryConfig.of(modality.name, modality.channels, given.names, given.width))
    if min(modality.size) < jury.least_size:
        raise ValueError(
            f"training items are {modality.size}, but the discriminators look at {jury.least_size} along "
            "each axis; take others (--adversarial.names), or none (--adversarial.weight 0)"
        )
    return jury


def train(
    options: DecoderTraining,
    accelerator: Accelerator,
    splits: Splits,
    old: Tokenizer,
    stage: DecoderStage,
    jury: Jury | None,
    perceptual: Perceptual | None,
) -> None:
    """Train, evaluate and checkpoint; at the end compare the codes and write the Hub-ready folder."""
    optimizers = optimizers_of(stage.tok, options, options.betas)
    adversary = None
    if jury is not None:
        adversary = Adversary(accelerator, jury.to(accelerator.device), options.adversarial)
    balance = (
        Balance(weights_of(options, stage)).to(accelerator.device) if options.adversarial.balance else None
    )
    course = Course(
        *(accelerator, options, stage.tok, optimizers, "decoder"),
        trained=stage,
        adversary=adversary,
        balance=balance,
    )
    if stage.tok.fingerprint() != old.fingerprint():
        raise ValueError(
            f"--tokenizer {options.tokenizer} has fingerprint {old.fingerprint()}, but the run in "
            f"{options.output} is of {stage.tok.fingerprint()}; give the tokenizer that it began with"
        )
    if course.finished:
        return

    def evaluate(averaged: HubModel) -> dict[str, float]:
        assert isinstance(averaged, Tokenizer)
        return evaluate_tokenizer(averaged, splits.held_out, accelerator)

    with course:
        for batch in batches(
            splits.train, workers=options.data.workers, augment=options.augment, **course.share()
        ):
            x = to_float(send(batch.x, accelerator.device))
            forward = partial(
                losses_of,
                x=x,
                perceptual=perceptual,
                weight=options.perceptual_weight,
                adversary=adversary,
                balance=balance,
            )
            if course.learn(batch, forward, [splits.train.id(int(i)) for i in batch.index]):
                course.close_step(batch.step + 1, evaluate)
    finish(options, accelerator, splits, old, course)


def losses_of(
    net: nn.Module,
    rows: slice,
    step: Step | None,
    x: Tensor,
    perceptual: Perceptual | None,
    weight: float,
    adversary: Adversary | None,
    balance: Balance | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses of these rows of x, or the one that balances them, and what they are made of. Without a step
    nothing is left with the discriminators, and nothing balanced."""
    out: DecoderOutput = net(x[rows], step=step)
    losses, stats = dict(out.losses), dict(out.stats)
    if perceptual is not None:
        losses["perceptual"] = weight * perceptual(out.x_hat.float(), x[rows])
    if adversary is not None and step is not None:
        charged, of_judgement = adversary.charge(x[rows], out.x_hat.float(), step)
        losses |= charged
        stats |= of_judgement
    if balance is not None and step is not None:
        losses = {"balanced": balance(losses, out.x_hat)}
    return losses, stats


def weights_of(options: DecoderTraining, stage: DecoderStage) -> dict[str, float]:
    """The weights of all losses, by the names of `losses_of`."""
    of_judgement = {"adversarial": options.adversarial.weight, "features": options.adversarial.feature_weight}
    perceptual = {"perceptual": options.perceptual_weight} if options.perceptual else {}
    return {**stage.losses, **perceptual, **of_judgement}


def finish(
    options: DecoderTraining, accelerator: Accelerator, splits: Splits, old: Tokenizer, course: Course
) -> None:
    """Compare the codes, evaluate the averaged weights and write model, discriminators, card and pictures."""
    assert isinstance(course.net, Tokenizer)
    tok = course.final(course.net, "decoder.")  # what makes codes stays as it is
    compared = codes_that_stayed(old.eval(), tok, splits.held_out, accelerator)
    measured = measure_tokenizer(tok, splits.held_out, accelerator, thorough=True)
    before = measure_tokenizer(old, splits.held_out, accelerator, thorough=True)
    metrics = measured.headline()
    course.record(options.max_steps, metrics, "valid")
    if accelerator.is_main_process:
        write_tokenizer_report(tok, splits, measured, options.output)
        what = "codes" if tok.is_discrete else "means and log-variances"
        change = change_in_words(before.headline(), metrics)
        logger.info("of %d %s of held-out items none differs. %s", compared, what, change)
        license = license_of(options.license, old.license)
        note = license_note(public_name(options.tokenizer), old.license)
        card = CardInfo(
            license=license,
            title=f"Tokenizer of {splits.name}, its decoder trained anew",
            datasets=(splits.name,) if options.data.on_hub else (),
            command=command_line(options.output),
            metrics=metrics,
            notes=f"The decoder alone was trained, on {len(splits.train)} items; measured on "
            f"{len(splits.held_out)} held out. Fingerprint and {what} are those of the tokenizer before: of "
            f"{compared} {what} of the held-out items none differs. "
            f"{change}{note}{credit(options.data.path)}",
        )
        tok.save_pretrained(options.output, card)
        if course.adversary is not None:
            notes = CardInfo(license=license, title="Discriminators", command=card.command)
            course.adversary.net.save_pretrained(options.output / DISCRIMINATOR, notes)
        course.conclude(metrics)
    meet(accelerator)


@torch.no_grad()
def codes_that_stayed(old: Tokenizer, new: Tokenizer, held_out: Split, accelerator: Accelerator) -> int:
    """How many codes of the held-out items were compared over all processes; of a VAE, numbers of the
    posterior. `RuntimeError` if one differs in one bit: this must not be."""
    differing = compared = 0
    for x, _ in held_out.inputs(EVAL_BATCH, accelerator.process_index, accelerator.num_processes):
        x = x.to(accelerator.device)
        for a, b in zip(coded(old, x), coded(new, x), strict=True):
            differing += int((a != b).sum())
            compared += a.numel()
    total = sum_over_processes(accelerator, torch.tensor([differing, compared]))
    if int(total[0]) or new.fingerprint() != old.fingerprint():
        raise RuntimeError(
            f"{int(total[0])} of {int(total[1])} codes differ after training the decoder alone"
        )
    return int(total[1])


def coded(tok: Tokenizer, x: Tensor) -> tuple[Tensor, ...]:
    """What a tokenizer encodes x to: codes, or mean and log-variance."""
    if tok.is_discrete:
        return (tok.encode(x),)
    posterior = tok.posterior(x)
    return posterior.mean, posterior.logvar


def change_in_words(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Measures of the tokenizer before and after, where they differ."""
    changed = [f"{k} {before[k]:.4g} → {v:.4g}" for k, v in after.items() if k in before and before[k] != v]
    return f"Before → after: {', '.join(changed)}." if changed else "No measure changed."


if __name__ == "__main__":
    run(main)
