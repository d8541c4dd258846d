"""The tokenizers and priors of a page: known at once by their configs, loaded while the page is shown.

Left out: what is done with them.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.browser.grids import code_colours
from pipelines.browser.rebuilt import SSIM_PIXELS
from pipelines.reports.neighbours import training_items
from pipelines.reports.spectrograms import spectrogram_pngs
from pipelines.run.models import load_tokenizer, split_name, tokenizer_of
from pipelines.tokens.clips import CodeClips
from pipelines.tokens.info import read_info
from pipelines.tokens.items import TokenSplit
from prior import Prior
from prior.config import PriorConfig
from tokenizer import Tokenizer
from tokenizer.hub.embedded import embedded_models
from tokenizer.metrics import ssim
from tokenizer.sound_metrics import available, stoi

logger = logging.getLogger(__name__)

PICTURES, SOUNDS = "image", "audio"
MOST = 4
# Seconds that a request waits for a model that is being loaded.
PATIENCE = 600.0


@dataclass(frozen=True)
class TokenizerEntry:
    """A tokenizer by the `name` that people read, where it is loaded from, and its `outline` without weights.
    The `fingerprint` is "" where only the weights tell it."""

    name: str
    source: str
    outline: Tokenizer
    fingerprint: str

    @property
    def kind(self) -> str:
        """`PICTURES` or `SOUNDS`."""
        return self.outline.modality.name


@dataclass(frozen=True)
class PriorEntry:
    """A prior by its name, where it is loaded from, its config, the name of its tokenizer, and the folder of
    tokens that it learnt ("": not given)."""

    name: str
    source: str
    config: PriorConfig
    tokenizer: str
    tokens: str


class Models:
    """All models of a page. `load` loads them in a thread of its own; who asks for one waits for it."""

    def __init__(self, tokenizers: Sequence[TokenizerEntry], priors: Sequence[PriorEntry]) -> None:
        self.tokenizers = {entry.name: entry for entry in tokenizers}
        self.priors = {entry.name: entry for entry in priors}
        keys = [*map(_tokenizer_key, self.tokenizers), *map(_prior_key, self.priors)]
        self._loaded: dict[str, Future[Any]] = {
            key: Future() for key in [*keys, *map(_tokens_key, self.priors)]
        }

    def of_kind(self, kind: str) -> list[str]:
        """Names of the tokenizers of pictures or of sounds."""
        return [name for name, entry in self.tokenizers.items() if entry.kind == kind]

    def priors_of(self, tokenizer: str) -> list[str]:
        """Names of the priors over a tokenizer's codes."""
        return [name for name, entry in self.priors.items() if entry.tokenizer == tokenizer]

    def priors_of_kind(self, kind: str) -> list[str]:
        """Names of the priors over codes of pictures or of sounds."""
        return [name for tokenizer in self.of_kind(kind) for name in self.priors_of(tokenizer)]

    def tokenizer(self, name: str) -> Tokenizer:
        """A tokenizer, once it is loaded; `ValueError` for a name there is not, or with what went wrong."""
        _require(name, self.tokenizers, "tokenizer")
        return self._wait(_tokenizer_key(name))[0]  # type: ignore[no-any-return]

    def colours(self, name: str) -> Tensor:
        """Colours of the codes of a tokenizer, once it is loaded."""
        _require(name, self.tokenizers, "tokenizer")
        return self._wait(_tokenizer_key(name))[1]  # type: ignore[no-any-return]

    def prior(self, name: str) -> Prior:
        """A prior, once it is loaded; `ValueError` for a name there is not, or with what went wrong."""
        _require(name, self.priors, "prior")
        return self._wait(_prior_key(name))  # type: ignore[no-any-return]

    def items(self, name: str) -> TokenSplit | CodeClips | None:
        """The training items of a prior, once they are loaded; None if they were not given."""
        _require(name, self.priors, "prior")
        return self._wait(_tokens_key(name)) if self.priors[name].tokens else None

    def load(self) -> threading.Thread:
        """Start to load all of them, in turn."""
        thread = threading.Thread(target=self._load, name="models", daemon=True)
        thread.start()
        return thread

    def _wait(self, key: str) -> Any:
        try:
            return self._loaded[key].result(timeout=PATIENCE)
        except TimeoutError:
            raise ValueError(
                "the models are still being loaded after ten minutes; see the terminal"
            ) from None

    def _load(self) -> None:
        for entry in self.tokenizers.values():
            self._fill(_tokenizer_key(entry.name), partial(_loaded_tokenizer, entry))
        for prior in self.priors.values():
            self._fill(_prior_key(prior.name), partial(self._loaded_prior, prior))
            if prior.tokens:
                self._fill(_tokens_key(prior.name), partial(self._loaded_items, prior))
        logger.info("the models are loaded")

    def _fill(self, key: str, load: Callable[[], Any]) -> None:
        try:
            self._loaded[key].set_result(load())
        except Exception as error:
            # Whoever asks for the model is told; the page goes on with the others.
            text = str(error) or type(error).__name__
            logger.error("Error: %s", text)
            self._loaded[key].set_exception(ValueError(text))

    def _loaded_prior(self, entry: PriorEntry) -> Prior:
        prior = Prior.from_pretrained(entry.source)
        prior.check_tokenizer(self.tokenizer(entry.tokenizer).fingerprint())
        return prior

    def _loaded_items(self, entry: PriorEntry) -> TokenSplit | CodeClips:
        return training_items(self.tokenizer(entry.tokenizer), entry.tokens)


def read_models(tokenizers: Sequence[str], priors: Sequence[str], tokens: Sequence[str] = ()) -> Models:
    """The models of some folders or Hub ids, from their configs alone, and folders of tokens that the priors
    learnt. A prior without a tokenizer brings its own; without either all are the embedded ones. `ValueError`
    for too many, VAEs, other data than pictures and sound, and a prior or tokens of another tokenizer."""
    if not tokenizers and not priors:
        priors = embedded_models(Prior.model_type)
    for flag, given in (("--tokenizer", tokenizers), ("--prior", priors)):
        if len(given) > MOST:
            raise ValueError(f"{flag}: expected at most {MOST}, got {len(given)}")
    outlines = {source: Prior.outlined(source)[0] for source in dict.fromkeys(priors)}
    sources = list(dict.fromkeys(tokenizers))
    if not sources:
        own = [str(tokenizer_of(Path(source), outline)) for source, outline in outlines.items()]
        sources = list(dict.fromkeys(own))
    names = shown_names(sources)
    entries = [_read_tokenizer(source, name) for source, name in zip(sources, names, strict=True)]
    prior_names = shown_names(list(outlines))
    learnt = {read_info(Path(folder)).fingerprint: folder for folder in tokens}
    wanted = {outline.config.tokenizer_fingerprint for outline in outlines.values()}
    if unused := [folder for fingerprint, folder in learnt.items() if fingerprint not in wanted]:
        raise ValueError(f"--tokens {unused[0]}: no --prior here learnt these; give those of one")
    found = [
        PriorEntry(
            name,
            source,
            outline.config,
            _tokenizer_among(outline, entries),
            learnt.get(outline.config.tokenizer_fingerprint, ""),
        )
        for name, (source, outline) in zip(prior_names, outlines.items(), strict=True)
    ]
    return Models(entries, found)


def shown_names(sources: Sequence[str]) -> list[str]:
    """Short names of folders or Hub ids that differ from each other: the last two parts of a path, or all."""
    short = ["/".join(Path(source).parts[-2:]) for source in sources]
    return [name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True)]


def _read_tokenizer(source: str, name: str) -> TokenizerEntry:
    folder, subfolder = split_name(source)
    outline, raw = Tokenizer.outlined(folder, subfolder)
    if outline.modality.name not in (PICTURES, SOUNDS):
        raise ValueError(f"{source}: is for {outline.modality.name}; the page takes pictures and sound")
    if not outline.is_discrete:
        raise ValueError(
            f"{source}: is a VAE, which has no codes; pipelines/quantize_vae.py makes a tokenizer with codes "
            "of it"
        )
    return TokenizerEntry(name, source, outline, str(raw.get("fingerprint") or ""))


def _tokenizer_among(prior: Prior, entries: Sequence[TokenizerEntry]) -> str:
    """The name of the prior's tokenizer; `ValueError` if it is none of them."""
    wanted = prior.config.tokenizer_fingerprint
    known = {entry.fingerprint or load_tokenizer(entry.source).fingerprint(): entry.name for entry in entries}
    if wanted not in known:
        prior.check_tokenizer(" or ".join(known))
    return known[wanted]


def _loaded_tokenizer(entry: TokenizerEntry) -> tuple[Tokenizer, Tensor]:
    """A tokenizer after a first use, which takes longer than all later ones, and the colours of its codes."""
    tok = load_tokenizer(entry.source)
    colours = code_colours(tok)
    size = (tok.sample_rate,) if entry.kind == SOUNDS else tok.modality.size
    x = torch.zeros(1, tok.modality.channels, *size)
    x_hat = tok.decode(tok.encode(x), size)
    if entry.kind == SOUNDS:
        noise = 0.1 * torch.rand(x_hat.shape, generator=torch.Generator().manual_seed(0))
        spectrogram_pngs({"": x_hat[0].clamp(-1, 1)}, tok.sample_rate)
        if "stoi" in available():
            stoi(noise, noise, tok.sample_rate)
    elif min(size) >= SSIM_PIXELS:
        ssim(x_hat, x)
    return tok, colours


def _require(name: str, known: Any, what: str) -> None:
    if name not in known:
        raise ValueError(f"there is no {what} {name!r} on this page; there are: {', '.join(known) or 'none'}")


def _tokenizer_key(name: str) -> str:
    return f"tokenizer {name}"


def _prior_key(name: str) -> str:
    return f"prior {name}"


def _tokens_key(name: str) -> str:
    return f"tokens {name}"
