"""Cut large pictures into many small ones of one size, to train on: `python pipelines/cut_pictures.py
--data.path DIR --output DIR`. Whole pictures are held out, never some pieces of one.

Left out: small pictures, which training resizes by itself, and views drawn anew in every epoch
(`--augment.*`).
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import csv
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.data.examples import Examples
from pipelines.data.folders import FILE_NAME, METADATA
from pipelines.data.kinds import Split
from pipelines.data.pictures import PICTURES
from pipelines.data.scan import listed, look_at_all
from pipelines.run.command_line import parse, run
from pipelines.run.folder import require_writable
from pipelines.run.processes import plain_accelerator
from tokenizer.distributed import keyed_generator
from tokenizer.modalities.files.pictures import open_picture
from tokenizer.modalities.image import MAX_SIZE, ImageConfig
from tokenizer.variants import at_least, require

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CutOptions:
    """Options of cut_pictures.py."""

    data: DataConfig = field(default_factory=lambda: DataConfig(path="my_pictures"))
    """Pictures to cut; what is held out of them goes to test/, all else to train/."""
    output: Path = Path("runs/pieces")
    """A new folder for the pieces, for --data.path of the other scripts."""
    size: tuple[int, int] = (64, 64)
    """Height and width of the pieces."""
    number: int = 100
    """Pieces of each picture."""
    smallest: float = 0.1
    """What a piece shows is between this part of the picture's shorter side and all of it, every factor
    between two scales as likely as another; never less than `size` pixels, so that nothing is enlarged. 1:
    always as much as fits."""
    seed: int = 0
    """Decides places and scales, for each picture by its content."""

    def __post_init__(self) -> None:
        at_least(self, 1, "number")
        at_least(self, 0, "seed")
        require(
            all(1 <= s <= MAX_SIZE for s in self.size), f"size is {self.size}, expected 1 to {MAX_SIZE} each"
        )
        require(0 < self.smallest <= 1, f"smallest is {self.smallest}, expected more than 0, 1 at most")


def main() -> None:
    """Cut both splits into a folder beside the output, which takes its name when it is whole."""
    options = parse(CutOptions, __doc__ or "")
    output = options.output
    require_writable(output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"--output {output}: the folder holds files; choose another, or delete it")
    plain_accelerator(options)
    splits = load_splits(options.data, ImageConfig(size=options.size).build())
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as unfinished:
        pieces = Path(unfinished) / "pieces"
        counts = {
            name: cut_split(split, pieces / name, splits.class_names, options)
            for name, split in (("train", splits.train), ("test", splits.held_out))
        }
        if not counts["train"]:
            height, width = options.size
            raise ValueError(
                f"{options.data.path}: no picture to train on has {height} × {width} pixels (H × W); give "
                "larger ones, or a smaller --size"
            )
        pieces.rename(output)
    logger.info("%s: %d pieces in train/, %d in test/", output, counts["train"], counts["test"])


def cut_split(split: Split, folder: Path, class_names: tuple[str, ...], options: CutOptions) -> int:
    """Write the pieces of all pictures of a split, and their classes, if there are any, as metadata.csv; how
    many pieces there are. Pictures smaller than a piece are left out, and named in the log."""
    assert isinstance(split, Examples)
    names: dict[int, list[str]] = {}
    too_small: dict[int, str] = {}
    if len(split):
        folder.mkdir(parents=True)

    def look(i: int) -> None:
        image = open_picture(split.raw(i), split.id(i), options.data.max_megapixels)
        if image.height < options.size[0] or image.width < options.size[1]:
            too_small[i] = f"has {image.height} × {image.width} pixels (H × W)"
            return
        # By its content: a picture that comes or goes changes no other's pieces.
        generator = keyed_generator(options.seed, int(split.digests[i]), "cut")
        stem = re.sub(r"[^\w-]+", "_", Path(split.id(i)).stem)
        names[i] = [f"{i:05d}-{stem}-{k:04d}.png" for k in range(options.number)]
        for name, piece in zip(names[i], pieces_of(image, options, generator), strict=True):
            piece.save(folder / name)

    look_at_all(look, range(len(split)), "cutting pictures")
    if too_small:
        skipped = [(split.id(i), too_small[i]) for i in sorted(too_small)]
        logger.warning("%s", listed(skipped, len(split), PICTURES))
    if class_names and split.labels is not None:
        with (folder / METADATA[0]).open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow((FILE_NAME, "label"))
            for i in sorted(names):
                label = class_names[split.labels[i]] if split.labels[i] >= 0 else ""
                rows.writerows((name, label) for name in names[i])
    return sum(map(len, names.values()))


def pieces_of(image: Image.Image, options: CutOptions, generator: torch.Generator) -> Iterator[Image.Image]:
    """Pieces of a picture at random scales and places, resized (Lanczos, antialiased) to `size`."""
    height, width = options.size
    largest = min(image.height / height, image.width / width)
    least = max(1.0, largest * options.smallest)
    draw = partial(torch.rand, 3, generator=generator, dtype=torch.float64)
    for _ in range(options.number):
        u = draw().tolist()
        scale = least * (largest / least) ** u[0]
        # A part of a pixel beyond the edge, by rounding, would be an error.
        box_height, box_width = min(height * scale, image.height), min(width * scale, image.width)
        top, left = u[1] * (image.height - box_height), u[2] * (image.width - box_width)
        box = (left, top, min(left + box_width, image.width), min(top + box_height, image.height))
        yield image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


if __name__ == "__main__":
    run(main)
