"""Train a tokenizer (VQ-VAE or VAE) of pictures or sound:
`accelerate launch pipelines/train_tokenizer.py [PRESET] [flags]`.

Left out: the prior over its codes (`train_prior.py`), which needs tokens (`encode_dataset.py`) first.
"""

import logging
from pathlib import Path

import torch
from accelerate import Accelerator

from pipelines.checkpoints import Checkpoints
from pipelines.cli import parse, run
from pipelines.data import EMBEDDED, Clips, Splits, batches, load_splits, to_float
from pipelines.evaluation import evaluate_tokenizer, write_tokenizer_report
from pipelines.optimizers import build_optimizers
from pipelines.options import TokenizerTraining
from pipelines.presets import TOKENIZERS
from pipelines.report import progress
from pipelines.run_folder import MetricsLog, command_line, run_folder
from pipelines.sound_evaluation import evaluate_sound, headline
from pipelines.table_sources import credit
from pipelines.training import (
    WeightAverage,
    mean_over_processes,
    rate_scale,
    require_equal,
    require_finite,
    seed_layers,
    set_rates,
    short_run,
    start_accelerator,
    start_trackers,
)
from tokenizer import Tokenizer
from tokenizer.distributed import Step
from tokenizer.hub import CardInfo, push_folder
from tokenizer.perceptual import Perceptual, load_perceptual

logger = logging.getLogger(__name__)


def main() -> None:
    """Read the options, check data and folder, train."""
    options = parse(TokenizerTraining, __doc__ or "", presets=TOKENIZERS, default_preset="emoji")
    accelerator = start_accelerator(options)
    options = short_run(options, log=accelerator.is_main_process)
    if options.perceptual and options.model.modality.kind != "image":
        raise ValueError("--perceptual is for pictures; sound has the losses mel and stft")
    splits = load_splits(options.data, options.model.modality.build())
    require_equal(accelerator, splits.digest(), "the data")
    # Made before the folder is claimed, so that a mistake in their options leaves no run behind.
    tok = Tokenizer(options.model).to(accelerator.device)
    perceptual = None
    if options.perceptual:
        perceptual = load_perceptual(options.perceptual, options.perceptual_download).to(accelerator.device)
    with run_folder(accelerator, options):
        train(options, accelerator, splits, tok, perceptual)
    accelerator.end_training()


def train(
    options: TokenizerTraining,
    accelerator: Accelerator,
    splits: Splits,
    tok: Tokenizer,
    perceptual: Perceptual | None,
) -> None:
    """Train, evaluate and checkpoint; at the end write the Hub-ready folder."""
    optimizers = build_optimizers(
        tok, options.optimizer, options.learning_rate, options.muon_learning_rate, options.weight_decay
    )
    # `model` is what trains; `tok` is the same weights unwrapped, for evaluation and saving only.
    model, *optimizers = accelerator.prepare(tok, *optimizers)
    average = WeightAverage(tok, options.ema_decay)
    checkpoints = Checkpoints(
        accelerator, options.output, tok, average, optimizers, options.keep_checkpoints, options.seed
    )
    seed_layers(options.seed, 0, accelerator.process_index)
    start = checkpoints.resume(options.resume) if options.resume else 0
    # A run that was stopped between its last checkpoint and its model still gets the model.
    if options.resume and checkpoints.model_is_written(start, options.max_steps):
        logger.info("%s is finished: %d of %d steps are done", options.output, start, options.max_steps)
        return
    log = MetricsLog(options.output / "metrics.jsonl", start, accelerator.is_main_process)
    start_trackers(accelerator, options)
    bar = progress(options.max_steps, "tokenizer", start, accelerator.is_main_process)

    model.train()
    for batch in batches(
        splits.train,
        batch_size=options.batch_size,
        micro_batches=options.gradient_accumulation,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        seed=options.seed,
        start_step=start,
        stop_step=options.max_steps,
        workers=options.data.workers,
        augment=options.augment,
    ):
        x = to_float(batch.x.to(accelerator.device, non_blocking=True))
        last = batch.micro == options.gradient_accumulation - 1
        where = Step(options.seed, batch.step, batch.offset, options.batch_size, last)
        set_rates(optimizers, rate_scale(batch.step, options.warmup_steps, options.max_steps))
        with accelerator.accumulate(model):
            out = model(x, step=where)
            losses = dict(out.losses)
            if perceptual is not None:
                losses["perceptual"] = options.perceptual_weight * perceptual(out.x_hat.float(), x)
            loss = torch.stack(list(losses.values())).sum()
            accelerator.backward(loss)
            if accelerator.sync_gradients and options.clip_norm:
                accelerator.clip_grad_norm_(tok.parameters(), options.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        if not last:
            continue
        step = batch.step + 1
        average.update(tok, step)
        bar.update()
        if step % options.log_every == 0 or step == options.max_steps:
            terms = {"loss": loss, **{f"loss_{k}": v for k, v in losses.items()}, **out.stats}
            values = mean_over_processes(accelerator, terms)
            require_finite(values, step)
            rows = {f"train/{k}": v for k, v in values.items()}
            log.add(step, rows)
            accelerator.log(rows, step=step)
            bar.set_postfix(loss=f"{values['loss']:.4g}")
            for event in tok.bottleneck.events():
                logger.info("step %d: %s", step, event)
        if step % options.eval_every == 0 and step < options.max_steps:
            metrics = evaluate_tokenizer(average.averaged(tok), splits.held_out, accelerator)
            rows = {f"valid/{k}": v for k, v in metrics.items()}
            log.add(step, rows)
            accelerator.log(rows, step=step)
        if step % options.checkpoint_every == 0 or step == options.max_steps:
            require_finite({"loss": loss.item()}, step)
            checkpoints.save(step)
    bar.close()
    finish(options, accelerator, splits, tok, average, log)


def finish(
    options: TokenizerTraining,
    accelerator: Accelerator,
    splits: Splits,
    tok: Tokenizer,
    average: WeightAverage,
    log: MetricsLog,
) -> None:
    """Evaluate the averaged weights on all held-out data and write model, card, metrics and pictures."""
    tok = average.averaged(tok)
    measured = None
    if isinstance(splits.held_out, Clips):
        measured = evaluate_sound(tok, splits.held_out, accelerator, thorough=True)
        metrics = headline(measured)
    else:
        metrics = evaluate_tokenizer(tok, splits.held_out, accelerator)
    rows = {f"valid/{k}": v for k, v in metrics.items()}
    log.add(options.max_steps, rows)
    accelerator.log(rows, step=options.max_steps)
    if accelerator.is_main_process:
        write_tokenizer_report(tok, splits, measured, options.output)
        on_hub = (
            not options.data.path.startswith(EMBEDDED) and not Path(options.data.path).expanduser().exists()
        )
        card = CardInfo(
            license=options.license,
            title=f"Tokenizer of {splits.name}",
            datasets=(splits.name,) if on_hub else (),
            command=command_line(options.output),
            metrics=metrics,
            notes=f"Trained on {len(splits.train)} items, measured on {len(splits.held_out)} held out."
            + credit(options.data.path),
        )
        tok.save_pretrained(options.output, card)
        summary = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        logger.info("held-out: %s\nsaved to %s", summary, options.output)
        if options.push_to_hub:
            logger.info("pushed: %s", push_folder(options.output, options.push_to_hub))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
