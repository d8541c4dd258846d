"""Save, load and publish models as Hub-ready folders: JSON, safetensors and a card. Loading is strict, runs
no code.

Left out: training state, which `pipelines/` keeps beside its checkpoints, talk with the Hub (`hub_client`),
and anything that needs pickle.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenizer.hub.client import HubSource, Token, fetch, push_folder
from tokenizer.hub.embedded import EMBEDDED, embedded_folder
from tokenizer.hub.files import (
    CARD,
    CHECKPOINTS,
    CONFIG,
    METRICS,
    PREPROCESSOR,
    SAMPLES,
    WEIGHTS,
    load_tensors,
    read_json,
    write_atomically,
    write_json,
)
from tokenizer.hub.meta import check_tables, fill, outline_of
from tokenizer.variants import config_from_dict, config_to_dict, shortened

# Licences as the Hub names them: of a new model if nobody says otherwise, and of one whose card names none.
USUAL, UNKNOWN = "apache-2.0", "unknown"
MAX_LICENSE = 100

CHANGED = "This model was changed after it was loaded; what was measured of it before is left out."


@dataclass(frozen=True)
class CardInfo:
    """What a model cannot know of itself, for its card: `license` is the Hub's id of a licence, `metrics`
    maps names to measured values, `command` is the exact command that trained it."""

    title: str = ""
    license: str = USUAL
    datasets: tuple[str, ...] = ()
    command: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: str = ""


class HubModel(nn.Module):
    """An `nn.Module` with a `config` dataclass that can be saved, loaded strictly and pushed to the Hub.

    A subclass sets `model_type` and `config_class`, takes its config as the one constructor argument, and
    may add to `extra_config` (facts for config.json), `preprocessor_config` and `card_fields`.
    """

    model_type: ClassVar[str]
    config_class: ClassVar[type]
    config: Any
    _loaded_from: Path | None = None
    # The licence that a model comes with: that which the card of a loaded one names, `UNKNOWN` if it names
    # none; "" for a new model.
    license: str = ""

    def extra_config(self) -> dict[str, Any]:
        """Facts that stand in config.json beside the config; `check_extra_config` checks them on loading."""
        return {}

    def plain_config(self) -> dict[str, Any]:
        """The config as plain JSON values; `_read_config` reads them."""
        return config_to_dict(self.config)

    def check_extra_config(self, extra: Mapping[str, Any]) -> None:
        """Raise `ValueError` if the loaded model contradicts what config.json says of it."""

    def preprocessor_config(self) -> dict[str, Any]:
        """What `preprocess` does to data, for preprocessor_config.json."""
        return {}

    def card_fields(self) -> dict[str, Any]:
        """`pipeline_tag`, `tags`, and `usage` (a Python example) of the card."""
        return {}

    def save_pretrained(self, directory: str | Path, card: CardInfo | None = None) -> Path:
        """Write config.json, model.safetensors, preprocessor_config.json, metrics.json and the card
        README.md.

        Each file is written beside its final name and renamed, so a file is never half there. Other files
        in the directory are left alone. Without a `card` a loaded model keeps the card, metrics and sample
        it was loaded with; if its weights or config were changed since, only the licence. Returns the
        directory.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        kept: dict[str, Path] = {}
        samples: tuple[str, ...] = SAMPLES
        if card is None and (source := self._loaded_from) is not None:
            if self._is_as_in(source):
                kept = {n: source / n for n in (*SAMPLES, METRICS, CARD) if (source / n).exists()}
            else:
                card, samples = CardInfo(license=self.license, notes=CHANGED), ()
        card = card or CardInfo(license=self.license or USUAL)
        self.write_model(directory)
        for name, path in kept.items():
            if path.resolve() != (directory / name).resolve():
                write_atomically(directory / name, partial(shutil.copyfile, path))
        if METRICS not in kept:
            write_json(directory / METRICS, dict(card.metrics), allow_nan=False)
        if CARD not in kept:
            samples = tuple(n for n in samples if (directory / n).exists())
            write_atomically(directory / CARD, lambda p: self._card(samples, card).save(p))
        return directory

    def write_model(self, directory: Path) -> None:
        """Write config.json, the weights and preprocessor_config.json into a folder."""
        config = {
            "model_type": self.model_type,
            "library_version": library_version(),
            **self.extra_config(),
            "config": self.plain_config(),
        }
        state = {k: v.detach().to("cpu").contiguous() for k, v in self.state_dict().items()}
        write_json(directory / CONFIG, config, allow_nan=False)
        # No metadata beyond the format: equal weights are equal files.
        write_atomically(directory / WEIGHTS, lambda p: save_file(state, p, metadata={"format": "pt"}))
        write_json(directory / PREPROCESSOR, self.preprocessor_config(), allow_nan=False)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        revision: str | None = None,
        subfolder: str = "",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str | None = None,
        local_files_only: bool = False,
        *,
        cache_dir: str | Path | None = None,
        token: Token = None,
    ) -> Self:
        """Load a local folder, a Hub repository ("user/name", at `revision`) or a model that ships with the
        project ("embedded:name"), strictly, in eval mode.

        `subfolder`: where in it the model lies, as models/small. `device`: where the weights go; left out,
        the CPU. `dtype`: torch.float32, bfloat16, float16 or float64, or its name; left out, the type that
        the weights were saved in. Rounded weights give a tokenizer another fingerprint. `local_files_only`:
        of the Hub, only what was downloaded before, without asking it.

        Raises `ValueError` naming what is wrong: a device, dtype or subfolder that cannot be (before anything
        is downloaded), no such folder or repository, another model type, an unknown or ill-typed config key,
        a corrupt file, a missing, extra or wrong-shaped tensor.
        """
        where, kind = usable_device(device), weights_dtype(dtype)
        source = HubSource(revision, subfolder, cache_dir, token, local_files_only)
        directory = cls._located(path_or_hub_id, source)
        raw, config = cls._read_config(directory)
        # Whatever torch's default is now: it would decide the weights' type, and constants that no file has.
        with _default_dtype(torch.float32):
            model, stored = cls._filled(directory, config)
        model.to(torch.get_default_device(), stored)
        model.eval()
        model.check_extra_config(raw)
        model._loaded_from, model.license = directory, license_in(directory / CARD)
        return model.to(device=where, dtype=kind)

    @classmethod
    def outlined(
        cls, path_or_hub_id: str | Path, subfolder: str = "", local_files_only: bool = False
    ) -> tuple[Self, dict[str, Any]]:
        """The model without its weights, on the device meta, and its config.json: what can be known of it in
        a moment. Arguments and errors are those of `from_pretrained`, but for broken weights."""
        source = HubSource(subfolder=subfolder, local_files_only=local_files_only)
        directory = cls._located(path_or_hub_id, source)
        raw, config = cls._read_config(directory)
        with _default_dtype(torch.float32):
            return outline_of(lambda: cls(config)), raw

    @classmethod
    def _located(cls, name: str | Path, source: HubSource) -> Path:
        """The folder of a model on this machine, once it is there."""
        if str(name).startswith(EMBEDDED):
            name = embedded_folder(str(name), cls.model_type)
        return fetch(name, cls._read_config, source)

    @classmethod
    def _filled(cls, directory: Path, config: Any) -> tuple[Self, torch.dtype | None]:
        """The model of a config with the weights in a folder, on the CPU, and the type that these are stored
        in, None for several."""
        # Sizes are compared with the files before anything is allocated.
        model = outline_of(lambda: cls(config))
        expected = model.state_dict()
        state = load_tensors(directory / WEIGHTS, expected)
        check_tables(model, (directory / WEIGHTS).stat().st_size, f"{directory / CONFIG}: config")
        stored = {value.dtype for value in state.values() if value.is_floating_point()}
        if len(stored) > 1:  # of several types the one that weights are made in
            state = {name: value.to(expected[name].dtype) for name, value in state.items()}
        fill(model, state)
        return model, stored.pop() if len(stored) == 1 else None

    def _is_as_in(self, directory: Path) -> bool:
        """Whether a folder holds this very model: its config, and weights with these values."""
        state = self.state_dict()
        try:
            _, config = self._read_config(directory)
            held = load_tensors(directory / WEIGHTS, state)
        except ValueError:  # the folder was changed or went away
            return False
        return config == self.config and all(_equal(held[name], value) for name, value in state.items())

    @classmethod
    def _read_config(cls, directory: Path) -> tuple[dict[str, Any], Any]:
        """config.json, and the config in it; `ValueError` if they are not of this class."""
        if not (directory / CONFIG).exists():
            why, fix = "holds no model", "give a folder that save_pretrained or a training script wrote"
            if (directory / CHECKPOINTS).is_dir():
                why, fix = "holds a run that is not finished", "go on with it by --resume latest"
            raise ValueError(f"{directory}: {why} (there is no {CONFIG}); {fix}")
        raw = read_json(directory / CONFIG)
        if raw.get("model_type") != cls.model_type:
            raise ValueError(
                f"{directory / CONFIG}: model_type is {shortened(raw.get('model_type'))}, but {cls.__name__} "
                f"loads {cls.model_type!r}; is this the folder of another model?"
            )
        return raw, config_from_dict(cls.config_class, raw.get("config"), f"{directory / CONFIG}: config")

    def push_to_hub(
        self, repo_id: str, private: bool = False, token: Token = None, revision: str | None = None
    ) -> str:
        """Upload the model's files, nothing else, to the Hub repository `repo_id`, on its branch `revision`;
        returns the commit's URL. A repository that is not there is made, `private` if asked."""
        with tempfile.TemporaryDirectory() as folder:
            return push_folder(self.save_pretrained(folder), repo_id, private, token, revision)

    def _card(self, samples: Sequence[str], card: CardInfo) -> ModelCard:
        fields = self.card_fields()
        data = ModelCardData(
            license=card.license,
            library_name="tokenloom",
            pipeline_tag=fields.get("pipeline_tag"),
            tags=["tokenloom", *fields.get("tags", [])],
            datasets=list(card.datasets) or None,
            metrics=sorted(card.metrics) or None,
        )
        template = files("tokenizer").joinpath("card_template.md").read_text(encoding="utf-8")
        filled: ModelCard = ModelCard.from_template(
            data,
            template_str=template,
            title=card.title or f"tokenloom {self.model_type}",
            summary=fields.get("summary", ""),
            usage=fields.get("usage", ""),
            command=card.command,
            notes=card.notes,
            measured={k: f"{v:.6g}" for k, v in card.metrics.items()},
            parameters=sum(p.numel() for p in self.parameters()),
            samples=list(samples),
        )
        return filled


DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


def weights_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A type that weights can have, by itself or by name; None stays None. `ValueError` for any other."""
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES.get(name)


def usable_device(device: torch.device | str | int | None) -> torch.device | None:
    """A device that can be used here; None stays None. `ValueError` for any other."""
    if device is None:
        return None
    try:
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"device: {device!r} cannot be used here ({reason}); take cpu, or leave it out"
        ) from error


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def library_version() -> str:
    """The installed version of tokenloom, or "unknown" in a source tree that was never installed."""
    try:
        return version("tokenloom")
    except PackageNotFoundError:
        return "unknown"


def _equal(held: Tensor, value: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, in whatever width."""
    exact = torch.promote_types(held.dtype, value.dtype)
    return torch.equal(held.to(exact), value.detach().to("cpu", exact))


def license_in(card: Path) -> str:
    """The licence that a card names, which may be anybody's; `UNKNOWN` if there is no card, it cannot be
    read, or names none."""
    try:
        named = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
    except Exception:  # of files, of text, of the card's own checks, in many kinds
        return UNKNOWN
    return named if isinstance(named, str) and named and len(named) <= MAX_LICENSE else UNKNOWN
