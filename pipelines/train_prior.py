"""Train a prior over tokens: `accelerate launch pipelines/train_prior.py --tokens DIR --output DIR`.

Left out: making the tokens (`encode_dataset.py`) and drawing from the prior (`sample.py`).
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import logging
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.data.tables import credit
from pipelines.evaluation.priors import evaluate_prior
from pipelines.presets import PRIORS
from pipelines.reports.plots import loss_plot
from pipelines.reports.priors import write_prior_sample
from pipelines.run.command_line import chosen_preset, parse, run
from pipelines.run.models import public_name
from pipelines.run.processes import load_alike, meet
from pipelines.run.publishing import check_push, license_note, license_of, push
from pipelines.tokens.info import TokenInfo, require_same_tokens, write_info
from pipelines.tokens.items import TokenRows, read_tokens, token_batches
from pipelines.tokens.windows import rows_of, window_info
from pipelines.training.loop import Course
from pipelines.training.options import OrderOptions, PriorSize, PriorTraining
from pipelines.training.run_folder import (
    check_run_folder,
    command_line,
    note_license,
    remembered_place,
    run_folder,
)
from pipelines.training.setup import optimizers_of, start_accelerator
from pipelines.training.sharding import bring_whole
from prior import Prior, PriorConfig
from prior.checks import UNCONDITIONAL
from prior.model import PriorOutput
from prior.patterns import IN_TURN
from tokenizer.devices import send
from tokenizer.distributed import Step
from tokenizer.hub.model import CardInfo, HubModel

logger = logging.getLogger(__name__)

# Options of the depth transformer.
INNER = ("inner_dim", "inner_depth", "inner_heads")
DEFAULT_PRESET = "small"


def main() -> None:
    """Read the options, check tokens and folder, train."""
    options = parse(PriorTraining, __doc__ or "", presets=PRIORS, default_preset=DEFAULT_PRESET)
    accelerator = start_accelerator(options)
    check_run_folder(accelerator, options)
    check_push(accelerator, options, resumed=bool(options.resume))
    with remembered_place(options, "tokens"):
        info, splits = load_alike(accelerator, "the tokens", lambda: load_tokens(options), digest_of)
    if accelerator.is_main_process:
        logger.info("%s", found_in(options, info, splits))
        check_preset(chosen_preset(DEFAULT_PRESET), info)
    if options.keep == "best" and not len(splits["held_out"]):
        raise ValueError("--keep best is judged on held-out items, but none are held out; use --keep last")
    note_license(accelerator, options, info.source, info.license)
    # Made before the folder is claimed, so that a mistake in its options leaves no run behind.
    prior = Prior(prior_config(options, info)).to(accelerator.device)
    if options.activation_checkpointing:
        prior.checkpoint_activations()
    if options.compile:
        prior.compile_blocks()
    with run_folder(accelerator, options):
        if options.resume:
            require_same_tokens(options.output, info)
        meet(accelerator)
        if accelerator.is_main_process:
            write_info(options.output, info)
        train(options, accelerator, info, splits, prior)
        push(accelerator, options)
    accelerator.end_training()


def load_tokens(options: PriorTraining) -> tuple[TokenInfo, dict[str, TokenRows]]:
    """The tokens as grids of one shape: sound of any length comes in windows, those of held-out items the
    same in every run."""
    info, splits = read_tokens(options.tokens, options.data.valid_fraction)
    if info.grid:
        if options.seconds != PriorTraining.seconds:
            logger.warning("--seconds has no effect: every item has a grid of %s", info.grid)
    else:
        info = window_info(info, options.seconds)
    seeds = {"train": options.seed, "held_out": 0}
    return info, {name: rows_of(split, info.grid[0], seeds[name]) for name, split in splits.items()}


def found_in(options: PriorTraining, info: TokenInfo, splits: dict[str, TokenRows]) -> str:
    """What the tokens are, in one line."""
    train, held_out = (len(splits[name]) for name in ("train", "held_out"))
    unit = splits["train"].unit
    classes = f" of {len(info.class_names)} classes" if info.class_names else ""
    held = f"{held_out} held out" if held_out else "none held out"
    codes = f"{info.codes_per_item} codes each, of {info.codebook_size} entries"
    return f"{options.tokens}: {train} {unit}{classes} to train on, {held}; {codes}"


def check_preset(name: str, info: TokenInfo) -> None:
    """Say so if the preset `name` ("" for none) is for tokens of another kind, and which are for these."""
    timed = info.frame_rate != 0
    if not name or PRIORS[name].timed == timed:
        return
    others = " or ".join(other for other, preset in PRIORS.items() if preset.timed == timed)
    what = ("frames over time", "pictures") if timed else ("grids of pictures", "sound")
    text = "the tokens are %s, but the preset %s is for %s; for these take: train_prior.py %s"
    logger.warning(text, what[0], name, what[1], others)


def digest_of(tokens: tuple[TokenInfo, dict[str, TokenRows]]) -> str:
    """What tells tokens from others: their encoding, and how many there are."""
    info, splits = tokens
    return repr((info, [len(rows) for rows in splits.values()]))


def prior_config(options: PriorTraining, info: TokenInfo) -> PriorConfig:
    """The prior that the options ask for, for codes of the tokens' kind."""
    of_time = len(info.grid) == 1
    several = "depth" if options.model.order == "any" else "delay"
    pattern = several if of_time and info.num_codebooks > 1 else "flatten"
    config = PriorConfig(
        codebook_size=info.codebook_size,
        num_codebooks=info.num_codebooks,
        grid=info.grid,
        class_names=info.class_names,
        unconditional=options.label_dropout > 0 or not info.class_names,
        rope_theta=10000.0 if of_time or options.model.rotary == "sequence" else PriorConfig.rope_theta,
        tokenizer_id=options.tokenizer_id or public_name(info.tokenizer),
        tokenizer_fingerprint=info.fingerprint,
        **(vars(options.model) | {"pattern": options.model.pattern or pattern}),
    )
    if not config.in_turn and any(getattr(options.model, n) != getattr(PriorSize, n) for n in INNER):
        logger.warning("--model.inner-* has no effect without --model.pattern depth and several codebooks")
    if config.pattern in IN_TURN and not config.in_turn:
        logger.warning("--model.pattern %s has no effect: there is one codebook", config.pattern)
    if config.order == "raster" and options.orders != OrderOptions():
        logger.warning("--orders.* has no effect without --model.order any")
    return config


def drop_labels(labels: Tensor, share: float, step: Step) -> Tensor:
    """labels (b,) with a random `share` hidden, so that one model learns both p(codes | class) and
    p(codes)."""
    hidden = step.uniform(len(labels), "labels") < share
    return torch.where(send(hidden, labels.device), UNCONDITIONAL, labels)


def drawn_orders(count: int, positions: int, share: float, step: Step) -> Tensor | None:
    """Orders (count, positions), a random `share` of them random and the others raster; None for raster
    alone."""
    if share == 0:
        return None
    chance = step.uniform(count, "orders", 1 + positions)
    order = chance[:, 1:].argsort(dim=1, stable=True)
    return torch.where(chance[:, :1] < share, order, torch.arange(positions))


def train(
    options: PriorTraining,
    accelerator: Accelerator,
    info: TokenInfo,
    splits: dict[str, TokenRows],
    prior: Prior,
) -> None:
    """Train, evaluate and checkpoint; at the end write the Hub-ready folder."""
    optimizers = optimizers_of(prior, options, betas=(0.9, 0.95))
    course = Course(
        *(accelerator, options, prior, optimizers, "prior"),
        headline="bits_per_code",
        keep_best=options.keep == "best",
    )
    if course.finished:
        return

    def evaluate(averaged: HubModel) -> dict[str, float]:
        assert isinstance(averaged, Prior)
        metrics = evaluate_prior(averaged, info, splits["held_out"], accelerator)
        if accelerator.is_main_process:  # people want to see what it draws long before the end
            bring_whole(averaged)
            write_prior_sample(averaged, options.output)
        return metrics

    with course:
        for batch in token_batches(splits["train"], **course.share()):
            codes, labels = (send(part, accelerator.device) for part in (batch.x, batch.labels))
            done = batch.step / options.max_steps
            share = options.orders.share(done) if prior.config.order == "any" else 0.0
            forward = partial(
                losses_of,
                codes=codes,
                labels=labels,
                label_dropout=options.label_dropout,
                random_orders=share,
            )
            if course.learn(batch, forward, [f"training item {i}" for i in batch.index.tolist()]):
                course.close_step(batch.step + 1, evaluate)
    finish(options, accelerator, info, splits, prior, course)


def losses_of(
    net: nn.Module,
    rows: slice,
    step: Step | None,
    codes: Tensor,
    labels: Tensor,
    label_dropout: float,
    random_orders: float = 0.0,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The loss of these rows of codes, of which a share comes in random orders, and the statistics of the
    prior."""
    shown = labels[rows] if step is None else drop_labels(labels[rows], label_dropout, step)
    codes, order = codes[rows], None
    if step is not None:
        order = drawn_orders(len(codes), codes[0, 0].numel(), random_orders, step)
    out: PriorOutput = net(codes, shown, None if order is None else send(order, codes.device))
    return out.losses, out.stats


def finish(
    options: PriorTraining,
    accelerator: Accelerator,
    info: TokenInfo,
    splits: dict[str, TokenRows],
    prior: Prior,
    course: Course,
) -> None:
    """Evaluate the averaged weights and write model, card, metrics and the plot of losses."""
    measure = partial(evaluate_prior, info=info, split=splits["held_out"], accelerator=accelerator)
    prior, net, kept = course.final(prior), prior, ""
    metrics = measure(prior)
    if course.best is not None and not course.best.offer(metrics[course.headline], options.max_steps):
        last, best = metrics[course.headline], int(course.best.step)
        course.best.put_back()
        prior = course.final(net)
        metrics = measure(prior)
        kept = (
            f" These are the averaged weights of step {best}, with {metrics[course.headline]:.4g} bits per "
            f"code; those of the last step had {last:.4g}."
        )
        logger.info("%s", kept.strip())
    train_metrics = evaluate_prior(prior, info, splits["train"].first(len(splits["held_out"])), accelerator)
    if "bits_per_code" in train_metrics:
        metrics["train_bits_per_code"] = train_metrics["bits_per_code"]
    course.record(options.max_steps, metrics, "valid")
    if accelerator.is_main_process:
        loss_plot(options.output / "metrics.jsonl", options.output / "loss.png")
        bring_whole(prior)
        write_prior_sample(prior, options.output)
        unit = splits["train"].unit
        length = f" A window is {info.grid[0] / info.frame_rate:g} s long." if info.frame_rate else ""
        views = f", each epoch in one of {info.views} views" if info.views > 1 else ""
        card = CardInfo(
            license=license_of(options.license, info.license),
            title=f"Prior over codes of {info.source}",
            command=command_line(options.output),
            metrics=metrics,
            notes=f"Trained on {len(splits['train'])} {unit}{views}, measured on {len(splits['held_out'])}; "
            f"train_bits_per_code is of as many training {unit}: the difference is what it memorised."
            + length
            + kept
            + license_note(prior.config.tokenizer_id, info.license)
            + credit(info.source),
        )
        prior.save_pretrained(options.output, card)
        course.conclude(metrics)
    meet(accelerator)


if __name__ == "__main__":
    run(main)
