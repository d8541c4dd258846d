"""The training presets of priors over any codes, and that of the embedded speech.

Left out: the options themselves (`training/options.py`).
"""

from pipelines.presets.registry import PRIORS, preset
from pipelines.training.options import PriorSize, PriorTraining


@preset(PRIORS, "small")
def _small() -> PriorTraining:
    """Tokens of small pictures (up to some hundred codes). About 2 minutes on 2 CPU cores; 1 M parameters."""
    return PriorTraining(max_steps=450, weight_decay=0.1, eval_every=150)


@preset(PRIORS, "medium")
def _medium() -> PriorTraining:
    """Tokens of some thousand small pictures in 8 views (encode_dataset.py --views 8 --augment.flip
    --augment.shift 1), for samples to be shown. About 60 minutes on one CPU core; 2 M parameters."""
    # Measured on 3,465 emoji of 64 codes of 512: `small` without views stays at 4.52 bits held out, this one
    # has 3.73 after 3,500 steps. After 6,000 it has 3.85, and what it draws is better by all measures, and no
    # nearer to training items (cards/samples.md), so the last weights are kept.
    return PriorTraining(
        max_steps=6000,
        weight_decay=0.1,
        model=PriorSize(dim=192, heads=6),
    )


@preset(PRIORS, "llama")
def _llama() -> PriorTraining:
    """The preset small as a plain Llama, for `Prior.to_transformers`. About 2 minutes on 2 CPU cores; 1 M
    parameters."""
    return PriorTraining(
        max_steps=450,
        weight_decay=0.1,
        model=PriorSize(pattern="flatten", rotary="sequence", qk_norm=False, target_embedding=False),
    )


@preset(PRIORS, "base")
def _base() -> PriorTraining:
    """Tokens of larger sets, 1024 codes per picture. Estimate: a day on one data-centre GPU for 1 M pictures;
    98 M parameters."""
    return PriorTraining(
        max_steps=200_000,
        batch_size=256,
        mixed_precision="bf16",
        optimizer="adamw",
        learning_rate=6e-4,
        warmup_steps=2000,
        weight_decay=0.05,
        checkpoint_every=5000,
        eval_every=5000,
        ema_decay=0.9995,
        model=PriorSize(dim=768, depth=12, heads=12, dropout=0.1),
    )


@preset(PRIORS, "speech", timed=True)
def _speech() -> PriorTraining:
    """Tokens of sound in windows of 4 seconds, all codebooks of a frame delayed against each other. About 3
    minutes on 2 CPU cores; 3 M parameters."""
    return PriorTraining(
        # Held-out speech is likeliest there; beyond, the prior learns the 20 minutes by heart.
        max_steps=300,
        batch_size=16,
        weight_decay=0.1,
        eval_every=100,
        model=PriorSize(dim=192, depth=4, heads=4, dropout=0.3),
    )
