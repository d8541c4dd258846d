"""The options of the training scripts as frozen dataclasses; tyro turns them into flags and their docs into
help.

Left out: the options of scripts that do not train, which stand in those scripts, and the presets
(`presets/pictures.py`).
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipelines.data.augment import Augment
from pipelines.data.config import DataConfig
from prior.patterns import PATTERNS
from tokenizer import TokenizerConfig
from tokenizer.config import DecoderConfig
from tokenizer.hub.model import USUAL
from tokenizer.losses import default_weights
from tokenizer.variants import at_least, require


@dataclass(frozen=True)
class TrainingOptions:
    """What every training script has."""

    output: Path = Path("runs/model")
    """Folder of the run, and at its end the Hub-ready folder of the model."""
    max_steps: int = 1000
    """Optimizer steps of the whole run. May grow when a run is resumed; the schedule follows."""
    batch_size: int = 64
    """Examples per optimizer step, over all processes and accumulation steps."""
    seed: int = 0
    """Decides initial weights, the order of examples and all noise."""
    deterministic: bool = False
    """On a GPU, use only operations that give the same bits every time, as CPUs do: slower, and refused with
    the operation that has no such form."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one more is written at the end."""
    keep_checkpoints: int = 2
    """Checkpoints that stay; older ones are deleted once a newer one is whole."""
    resume: str = ""
    """`latest`, or the path of a checkpoint. Options come from the run's own run.json, whatever the preset.
    """
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Precision of the network's arithmetic; left out, accelerate's config decides."""
    gradient_accumulation: int = 1
    """Forward passes per optimizer step; the batch is cut into as many parts."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for hidden matrices with AdamW for the rest, or AdamW for all."""
    learning_rate: float = 2e-3
    """Peak rate of AdamW, reached after the warm-up and followed by a cosine to 0."""
    muon_learning_rate: float = 0.02
    """Peak rate of Muon, on the same schedule."""
    warmup_steps: int = 100
    """Steps over which the rates grow from 0."""
    weight_decay: float = 0.0
    """Decay of weight matrices, scaled by the rate."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm. 0: never."""
    skip_non_finite: int = 0
    """Leave out and count up to this many steps in a row whose loss or gradient is not finite; one more stops
    the run."""
    ema_decay: float = 0.99
    """Decay of the moving average of weights, which is what is saved. 0 saves the last weights."""
    rounded: bool = False
    """Round weights to bfloat16, in files of float32 still, before they are measured and saved: the files
    compress to half."""
    log_every: int = 50
    """Steps between log lines."""
    eval_every: int = 500
    """Steps between evaluations on held-out data; one more at the end."""
    tracker: Literal["tensorboard", "wandb", "mlflow", "trackio", "none"] = "tensorboard"
    """Where accelerate sends the logged values, besides metrics.jsonl."""
    license: str = USUAL
    """Licence of the model, as the Hub names it; mind the licence of your data. apache-2.0 gives way to that
    of the tokenizer which the model is made of, or whose codes it learns."""
    push_to_hub: str = ""
    """Hub repository (user/name) that the finished model is uploaded to."""
    push_private: bool = False
    """Make that repository private, if it is not there yet."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_steps", "batch_size", "gradient_accumulation", "log_every", "eval_every")
        at_least(self, 1, "checkpoint_every", "keep_checkpoints")
        at_least(self, 0, "learning_rate", "muon_learning_rate", "weight_decay", "clip_norm")
        at_least(self, 0, "warmup_steps", "seed", "skip_non_finite")
        require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}, expected 0 or more and less than 1")


# Options that may change when a run is resumed: none of them changes what is learnt as long as all is finite,
# and max_steps may grow.
MAY_CHANGE = frozenset(
    {
        *("output", "resume", "max_steps", "checkpoint_every", "keep_checkpoints", "log_every", "eval_every"),
        *("tracker", "license", "push_to_hub", "push_private", "data.workers", "skip_non_finite"),
        *("tokenizer_id", "tokenizer", "discriminator", "push_discriminator"),
    }
)


@dataclass(frozen=True)
class TokenizerTraining(TrainingOptions):
    """Options of train_tokenizer.py."""

    output: Path = Path("runs/tokenizer")
    """Folder of the run, and at its end the Hub-ready folder of the model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where pictures or sound come from."""
    augment: Augment = field(default_factory=Augment)
    """Random views of training pictures."""
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    """The tokenizer."""
    perceptual: str = ""
    """Feature network of a perceptual loss: stlpips:vgg16, whose weights come with its package, or e.g.
    torchvision:vgg16 or torchvision:vgg16:WEIGHTS. Empty: none."""
    perceptual_weight: float = 0.1
    """Weight of the perceptual loss, if there is one."""
    perceptual_download: bool = False
    """Allow the feature network's weights to be downloaded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.optimizer != "muon" or not getattr(self.model.modality, "weight_norm", False),
            "weight normalisation hides the matrices that Muon needs; use --optimizer adamw",
        )


@dataclass(frozen=True)
class AdversarialOptions:
    """Discriminators, and what the decoder pays to them."""

    names: tuple[str, ...] = ()
    """Discriminators by name: patch, or features (those of stlpips:vgg16), for pictures; stft and period for
    sound. Left out: patch, or both for sound."""
    width: int | None = None
    """Channels of their first layers; left out, what each has by itself."""
    loss: Literal["hinge", "least_squares"] = "hinge"
    """Hinge (arXiv 1705.02894), or least squares (arXiv 1611.04076)."""
    weight: float = 0.1
    """Weight of the adversarial loss. 0: none, and no discriminators."""
    feature_weight: float = 0.0
    """Weight of matching the discriminators' activations (arXiv 2210.13438, section 3.4)."""
    start: int = 200
    """Steps in which discriminators learn before the decoder pays anything to them."""
    learning_rate: float = 2e-4
    """Peak rate of their AdamW, on the schedule of all rates."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Decays of their AdamW."""
    smoothness: float = 0.0
    """Weight of the discriminators' steepness around data and what the decoder makes (R1 and R2, arXiv
    1801.04406), which keeps the decoder from fooling them by what nobody sees. 0: none."""
    balance: bool = False
    """Take all weights, those of reconstruction too, as shares of the gradient that reaches the decoder,
    whatever the sizes of the losses (arXiv 2210.13438, section 3.4)."""
    augment: bool = True
    """Pictures: show them data and the decoder's work in random views (arXiv 2006.10738), as small sets need.
    """

    def __post_init__(self) -> None:
        for name in ("weight", "feature_weight", "learning_rate", "smoothness"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"adversarial.{name} is {value}, expected 0 or more")
        require(self.start >= 0, f"adversarial.start is {self.start}, expected 0 or more")
        require(
            self.feature_weight == 0 or self.weight > 0,
            "adversarial.feature_weight needs discriminators, but adversarial.weight is 0",
        )
        require(
            all(0 <= b < 1 for b in self.betas), f"adversarial.betas are {self.betas}, expected 0 to below 1"
        )


@dataclass(frozen=True)
class DecoderTraining(TrainingOptions):
    """Options of train_decoder.py."""

    output: Path = Path("runs/decoder")
    """Folder of the run, and at its end the Hub-ready folder of the tokenizer."""
    tokenizer: str = ""
    """The tokenizer whose codes stay: a folder, user/name on the Hub (user/name:FOLDER for one within), or
    embedded:NAME."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where pictures or sound come from."""
    augment: Augment = field(default_factory=Augment)
    """Random views of training pictures."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Another decoder than the tokenizer's own, which then begins untrained, or, with more blocks and nothing
    else, as the tokenizer's own."""
    losses: dict[str, float] = field(default_factory=default_weights)
    """Weights of the reconstruction losses by name, in place of the tokenizer's own; all 0: its own."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decays of the decoder's AdamW; a lower first one follows discriminators more quickly."""
    perceptual: str = ""
    """Feature network of a perceptual loss: stlpips:vgg16, whose weights come with its package, or e.g.
    torchvision:vgg16 or torchvision:vgg16:WEIGHTS. Empty: none."""
    perceptual_weight: float = 0.1
    """Weight of the perceptual loss, if there is one."""
    perceptual_download: bool = False
    """Allow the feature network's weights to be downloaded."""
    adversarial: AdversarialOptions = field(default_factory=AdversarialOptions)
    """Discriminators."""
    discriminator: str = ""
    """Folder of discriminators to go on from, such as the discriminator/ of an earlier run; in place of
    --adversarial.names and --adversarial.width."""
    push_discriminator: bool = False
    """Push discriminator/ with the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        start, weight = self.adversarial.start, self.adversarial.weight
        require(
            weight == 0 or start < self.max_steps,
            f"--adversarial.start is {start}, but there are only --max-steps {self.max_steps}: the decoder "
            "would never learn from the discriminators; lower the one, or raise the other",
        )


@dataclass(frozen=True)
class PriorSize:
    """Size of the transformer."""

    dim: int = 128
    """Width."""
    depth: int = 4
    """Layers."""
    heads: int = 4
    """Attention heads."""
    dropout: float = 0.1
    """Dropout in the layers."""
    pattern: Annotated[
        str,
        tyro.conf.arg(
            help=f"Order in which codes are predicted: {', '.join(sorted(PATTERNS))}. Left out: delay for "
            "sound of several codebooks (depth with order any), else flatten, which takes a step for every "
            "code."
        ),
    ] = ""
    inner_dim: int = 128
    """Pattern depth: width of the depth transformer over the codebooks of a position."""
    inner_depth: int = 2
    """Pattern depth: layers of the depth transformer."""
    inner_heads: int = 4
    """Pattern depth: heads of the depth transformer."""
    rotary: Literal["grid", "sequence"] = "grid"
    """What rotary positions count: rows and columns (or frames), or steps of the sequence."""
    qk_norm: bool = True
    """Normalise queries and keys."""
    order: Literal["raster", "any"] = "raster"
    """Orders of positions to learn: raster alone, or every one, for holes with known codes on all sides and
    for drawing in few steps (sample.py --steps)."""
    target_embedding: bool = True
    """Tell every step what it is about to predict."""

    def __post_init__(self) -> None:
        known = ", ".join(sorted(PATTERNS))
        require(self.pattern in ("", *PATTERNS), f"pattern is {self.pattern!r}, expected one of {known}")


@dataclass(frozen=True)
class OrderOptions:
    """Which orders examples come in, with --model.order any."""

    random: float = 0.9
    """Share of examples in a random order, the others in raster order."""
    anneal: tuple[float, float] = (1.0, 1.0)
    """Shares of the training between which that one falls evenly to 0. 0.5 0.75 with --orders.random 1 is
    what arXiv 2411.00776 does, for raster order to be best in the end; 1 1: never."""

    def __post_init__(self) -> None:
        require(0 < self.random <= 1, f"orders.random is {self.random}, expected above 0, to 1")
        start, end = self.anneal
        require(0 <= start <= end <= 1, f"orders.anneal is {self.anneal}, expected two rising shares, 0 to 1")

    def share(self, done: float) -> float:
        """The share of examples in a random order when the share `done` of the training is done."""
        start, end = self.anneal
        if done < start or start == 1:
            return self.random
        return self.random * (end - done) / (end - start) if done < end else 0.0


@dataclass(frozen=True)
class TokenData:
    """Held-out tokens."""

    valid_fraction: float = 0.05
    """Share held out by content hash, if the tokens have no held-out file of their own."""

    def __post_init__(self) -> None:
        require(
            0 <= self.valid_fraction < 1, f"valid_fraction is {self.valid_fraction}, expected 0 to below 1"
        )


@dataclass(frozen=True)
class PriorTraining(TrainingOptions):
    """Options of train_prior.py."""

    output: Path = Path("runs/prior")
    """Folder of the run, and at its end the Hub-ready folder of the model."""
    tokens: Annotated[Path, tyro.conf.arg(aliases=["--data.path"])] = Path("runs/tokens")
    """Folder of tokens that encode_dataset.py wrote."""
    data: TokenData = field(default_factory=TokenData)
    """How tokens are held out."""
    tokenizer_id: str = ""
    """What the prior names as its tokenizer, as user/name. Left out: the Hub id that it was loaded from or
    pushed to, else the name of its folder, which is looked for beside the prior's; never its path."""
    seconds: float = 4.0
    """Sound and series: length of the windows that the prior learns. Pictures: no effect."""
    model: PriorSize = field(default_factory=PriorSize)
    """The transformer."""
    orders: OrderOptions = field(default_factory=OrderOptions)
    """Orders of the training examples."""
    label_dropout: float = 0.1
    """Share of examples whose label is hidden, which classifier-free guidance needs."""
    keep: Literal["last", "best"] = "last"
    """Averaged weights that are saved: the last ones, or, of those at each --eval-every and at the end, the
    ones with the fewest bits per code on held-out items, as for a small set that is learnt by heart."""
    compile: bool = False
    """Compile the transformer's blocks (torch.compile): faster after a first step of half a minute or more. A
    CPU needs a C++ compiler for it."""
    activation_checkpointing: bool = False
    """Keep only the blocks' inputs for the backward pass: less memory, about a third more time, the same
    result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.seconds < math.inf, f"seconds is {self.seconds}, expected more than 0")
        require(
            self.keep == "last" or self.ema_decay > 0,
            "keep is best, which needs averaged weights, but ema_decay is 0; set --ema-decay above it",
        )
