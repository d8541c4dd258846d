"""Train a tokenizer (VQ-VAE or VAE) of pictures or sound:
`accelerate launch pipelines/train_tokenizer.py [PRESET] [flags]`.

Left out: the prior over its codes (`train_prior.py`), which needs tokens (`encode_dataset.py`) first.
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

from functools import partial

from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.data.batches import Splits, batches
from pipelines.data.kinds import to_float
from pipelines.data.tables import credit
from pipelines.evaluation.tokenizers import evaluate_tokenizer, measure_tokenizer
from pipelines.presets import TOKENIZERS
from pipelines.reports.tokenizers import write_tokenizer_report
from pipelines.run.command_line import chosen_preset, parse, run
from pipelines.run.processes import meet
from pipelines.run.publishing import check_push, push
from pipelines.training.loop import Course
from pipelines.training.options import TokenizerTraining
from pipelines.training.run_folder import check_run_folder, command_line, run_on_data
from pipelines.training.setup import optimizers_of, short_run, start_accelerator
from tokenizer import Tokenizer
from tokenizer.devices import send
from tokenizer.distributed import Step
from tokenizer.hub.model import CardInfo, HubModel
from tokenizer.model import TokenizerOutput
from tokenizer.perceptual import Perceptual, load_perceptual

DEFAULT_PRESET = "emoji"


def main() -> None:
    """Read the options, check data and folder, train."""
    options = parse(TokenizerTraining, __doc__ or "", presets=TOKENIZERS, default_preset=DEFAULT_PRESET)
    accelerator = start_accelerator(options)
    name = chosen_preset(DEFAULT_PRESET)
    usual = TOKENIZERS[name].build().max_steps if name else 0
    options = short_run(options, accelerator.is_main_process, usual)
    if options.perceptual and options.model.modality.kind != "image":
        raise ValueError("--perceptual is for pictures; sound has the losses mel and stft")
    check_run_folder(accelerator, options)
    check_push(accelerator, options, resumed=bool(options.resume))
    # Mistakes in the options are found before the data are read and the folder is claimed.
    tok = Tokenizer(options.model).to(accelerator.device)
    perceptual = None
    if options.perceptual:
        perceptual = load_perceptual(options.perceptual, options.perceptual_download).to(accelerator.device)
    with run_on_data(accelerator, options, tok.modality) as splits:
        train(options, accelerator, splits, tok, perceptual)
        push(accelerator, options)
    accelerator.end_training()


def train(
    options: TokenizerTraining,
    accelerator: Accelerator,
    splits: Splits,
    tok: Tokenizer,
    perceptual: Perceptual | None,
) -> None:
    """Train, evaluate and checkpoint; at the end write the Hub-ready folder."""
    optimizers = optimizers_of(tok, options)
    course = Course(accelerator, options, tok, optimizers, "tokenizer", events=tok.bottleneck.events)
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
            forward = partial(losses_of, x=x, perceptual=perceptual, weight=options.perceptual_weight)
            if course.learn(batch, forward, [splits.train.id(int(i)) for i in batch.index]):
                course.close_step(batch.step + 1, evaluate)
    finish(options, accelerator, splits, tok, course)


def losses_of(
    net: nn.Module, rows: slice, step: Step | None, x: Tensor, perceptual: Perceptual | None, weight: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses of these rows of x, and the statistics of the tokenizer."""
    out: TokenizerOutput = net(x[rows], step=step)
    losses = dict(out.losses)
    if perceptual is not None:
        losses["perceptual"] = weight * perceptual(out.x_hat.float(), x[rows])
    return losses, out.stats


def finish(
    options: TokenizerTraining,
    accelerator: Accelerator,
    splits: Splits,
    tok: Tokenizer,
    course: Course,
) -> None:
    """Evaluate the averaged weights on all held-out data and write model, card, metrics and pictures."""
    tok = course.final(tok)
    measured = measure_tokenizer(tok, splits.held_out, accelerator, thorough=True)
    metrics = measured.headline()
    course.record(options.max_steps, metrics, "valid")
    if accelerator.is_main_process:
        write_tokenizer_report(tok, splits, measured, options.output)
        card = CardInfo(
            license=options.license,
            title=f"Tokenizer of {splits.name}",
            datasets=(splits.name,) if options.data.on_hub else (),
            command=command_line(options.output),
            metrics=metrics,
            notes=f"Trained on {len(splits.train)} items, measured on {len(splits.held_out)} held out."
            + credit(options.data.path),
        )
        tok.save_pretrained(options.output, card)
        course.conclude(metrics)
    meet(accelerator)


if __name__ == "__main__":
    run(main)
