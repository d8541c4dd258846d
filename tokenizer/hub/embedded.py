"""Models that ship with the project, by names as embedded:emoji.

Left out: how they were trained (cards/embedded.md), and the data that ship (`pipelines/data`).
"""

from pathlib import Path

from tokenizer.variants import shortened

EMBEDDED = "embedded:"
# Beside this package, as all packages of the distribution are: folders NAME/tokenizer and NAME/prior.
MODELS = Path(__file__).parents[2] / "pipelines" / "embedded" / "models"


def embedded_models(model_type: str) -> list[str]:
    """The names of the models of a type, `tokenloom-tokenizer` or `tokenloom-prior`."""
    return sorted(EMBEDDED + path.parent.name for path in MODELS.glob(f"*/{_folder(model_type)}"))


def embedded_folder(name: str, model_type: str) -> Path:
    """The folder of the model of that name and type; `ValueError` for one that does not ship."""
    if name not in (known := embedded_models(model_type)):
        what = f"{shortened(name)}: no such embedded {_folder(model_type)}"
        raise ValueError(f"{what}; there are: {', '.join(known) or 'none'}")
    return MODELS / name.removeprefix(EMBEDDED) / _folder(model_type)


def _folder(model_type: str) -> str:
    return model_type.removeprefix("tokenloom-")
