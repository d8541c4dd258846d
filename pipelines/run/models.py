"""A prior together with the tokenizer whose codes it knows: loading both, and a sheet of samples.

Left out: loading a model alone, which is `from_pretrained`.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor

from pipelines.report import sample_sheet
from pipelines.sound_report import write_wav
from pipelines.spectrograms import mel_sheet
from pipelines.tokens.info import TOKENS_FILE, read_info
from pipelines.training.run_folder import RUN_FILE
from prior import Prior
from tokenizer import Tokenizer
from tokenizer.distributed import keyed_generator
from tokenizer.files import read_json

logger = logging.getLogger(__name__)

# Classes, and pictures or sounds of each, on a prior's sample.png.
CLASSES, PICTURES, SOUNDS = 12, 8, 3


def require_models(prior: str, tokenizer: str) -> None:
    """`ValueError` if neither is named."""
    if not prior and not tokenizer:
        raise ValueError("give --prior DIR, or --tokenizer DIR, or both")


def load_models(prior: str, tokenizer: str, device: torch.device) -> tuple[Prior | None, Tokenizer]:
    """The prior (None without a name) and the tokenizer of that name, or else the one that the prior names.

    Raises `ValueError` if neither is given, one cannot be loaded, or they do not belong together.
    """
    require_models(prior, tokenizer)
    loaded = Prior.from_pretrained(prior).to(device) if prior else None
    if loaded is None or tokenizer:
        tok = Tokenizer.from_pretrained(tokenizer).to(device)
    else:
        try:
            tok = Tokenizer.from_pretrained(_tokenizer_of(Path(prior), loaded)).to(device)
        except ValueError as error:
            raise ValueError(
                f"the prior's tokenizer cannot be loaded; give it with --tokenizer: {error}"
            ) from error
    if loaded is not None:
        loaded.check_tokenizer(tok.fingerprint())
    return loaded, tok


def public_name(tokenizer: str) -> str:
    """What a prior, which may be published, names as its tokenizer: the Hub id that this was loaded from or
    pushed to, else the name of its folder without the path, which is nobody else's."""
    folder = Path(tokenizer)
    if not folder.is_dir() and tokenizer.count("/") == 1 and not tokenizer.startswith((".", "/", "~")):
        return tokenizer
    run = folder / RUN_FILE
    pushed = read_json(run).get("push_to_hub") if run.exists() else None
    return pushed if pushed and isinstance(pushed, str) else folder.resolve().name


def _tokenizer_of(prior: Path, loaded: Prior) -> str | Path:
    """The tokenizer of the prior in a folder: the one that it names, if that is a path, as in priors of older
    releases; the one of the tokens that a run here learnt; or a folder of its name beside the prior's own,
    with which it may have been moved."""
    named = loaded.config.tokenizer_id
    if "/" in named and Path(named).is_dir():
        return named
    if (prior / TOKENS_FILE).exists() and Path(learnt := read_info(prior).tokenizer).is_dir():
        return learnt
    beside = prior.parent / Path(named).name
    return beside if named and beside.is_dir() else named


def write_prior_sample(prior: Prior, folder: Path) -> None:
    """sample.png (and sample.wav), samples of each class, for the prior's card. A tokenizer that is not where
    the prior says, or is not the one it was, leaves the card without them, and the log says so."""
    config = prior.config
    try:
        tok = Tokenizer.from_pretrained(_tokenizer_of(folder, prior)).to(next(prior.parameters()).device)
        prior.check_tokenizer(tok.fingerprint())
    except ValueError as error:
        logger.warning("no sample.png: %s", error)
        return
    rows = []
    for name in config.class_names[:CLASSES] or ("samples",):
        label = name if config.class_names else None
        scale = 2.0 if label and config.unconditional else 1.0
        count = SOUNDS if tok.modality.sample_rate else PICTURES
        codes = prior.sample(
            count, label, temperature=0.9, cfg_scale=scale, generator=keyed_generator(0, name)
        )
        size = None if tok.modality.sample_rate else tok.modality.size
        rows.append((name, tok.decode(codes, size).cpu()))
    if tok.modality.sample_rate:
        write_sound_samples(rows, tok.modality.sample_rate, folder)
    else:
        sample_sheet(rows, folder / "sample.png")


def write_sound_samples(rows: list[tuple[str, Tensor]], sample_rate: int, folder: Path) -> None:
    """sample.png, spectrograms of rows (name, sounds (N, C, T)), and sample.wav, the first of each row."""
    clips = [(f"{name} {i + 1}", {"": x.clamp(-1, 1)}) for name, sounds in rows for i, x in enumerate(sounds)]
    mel_sheet(clips, sample_rate, folder / "sample.png")
    write_wav(folder / "sample.wav", torch.cat([x[0].clamp(-1, 1) for _, x in rows], dim=1), sample_rate)
