"""Sound that people listen to: WAV files, and a page of HTML that plays clips beside their spectrograms.

Left out: measuring (`tokenizer.sound_metrics`).
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from einops import rearrange
from torch import Tensor

from pipelines.reports.plots import save_picture
from pipelines.reports.rate_distortion import quantity, shown
from pipelines.reports.spectrograms import Row, check_rows, spectrogram_pngs

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: .5rem 0; }
table { border-collapse: collapse; margin: 1rem 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); }
th { text-align: left; font-weight: 400; }
thead th { font-size: .85rem; }
td.value, th.value { text-align: right; font-variant-numeric: tabular-nums; }
section { border-top: 1px solid var(--line); padding: 1rem 0 0; grid-column: 1 / -1; }
section.single { grid-column: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .6rem; border-radius: .5rem; background: var(--soft); }
figcaption { font-size: .9rem; overflow-wrap: anywhere; }
img, audio { display: block; width: 100%; margin-top: .4rem; }
img { height: auto; border-radius: .3rem; background: #fff; }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% for note in notes %}
<p>{{ note }}</p>
{% endfor %}
{% if metrics %}
<table>
<caption>Measured</caption>
<thead><tr><th scope="col">metric</th><th scope="col" class="value">value</th><th scope="col">unit</th>
<th scope="col">better</th></tr></thead>
<tbody>
{% for name, value, unit, better in metrics %}
<tr><th scope="row">{{ name }}</th><td class="value">{{ value }}</td><td>{{ unit }}</td>
<td>{{ better }}</td></tr>
{% endfor %}
</tbody>
</table>
{% endif %}
<div class="grid">
{% for name, clips in rows %}
<section class="{{ "single" if clips|length == 1 }}" aria-labelledby="item-{{ loop.index }}">
<h2 id="item-{{ loop.index }}">{{ name }}</h2>
<div class="grid">
{% for label, seconds, wav, png in clips %}
<figure>
<figcaption>{{ label }}{{ ", " if label }}{{ "%.2f" % seconds }} s</figcaption>
<audio controls preload="metadata" aria-label="{{ name }}{{ ", " if label }}{{ label }}"
 src="data:audio/wav;base64,{{ wav }}"></audio>
<img alt="Spectrogram of {{ name }}{{ ", " if label }}{{ label }}" src="data:image/png;base64,{{ png }}">
</figure>
{% endfor %}
</div>
</section>
{% endfor %}
</div>
</main>
</body>
</html>
"""


def write_wav(path: str | Path, x: Tensor, sample_rate: int) -> None:
    """Write a clip (C, T) in [-1, 1], beyond which it is clamped, as a WAV file of 16 bits; makes the folder.

    `ValueError` for another shape, no samples, NaN or infinity.
    """
    data = _wav(x, sample_rate)
    save_picture(path, lambda beside: beside.write_bytes(data))


def write_wavs(folder: str | Path, rows: Sequence[Row], sample_rate: int) -> list[Path]:
    """Write every clip to `folder` as 001-NAME-LABEL.wav, numbered by row; returns the paths in order.

    Letters that do not suit file names become "-". `ValueError` as in `write_wav`, before the first file.
    """
    check_rows(rows)
    paths = []
    for i, (name, clips) in enumerate(rows, 1):
        for j, (label, x) in enumerate(clips.items()):
            words = [f"{i:03d}", _slug(name), _slug(label)]
            path = Path(folder, "-".join(filter(None, words)) + ".wav")
            if path in paths:  # labels that differ in what was replaced only
                path = path.with_stem(f"{path.stem}-{j + 1}")
            write_wav(path, x, sample_rate)
            paths.append(path)
    return paths


def listening_page(
    rows: Sequence[Row],
    sample_rate: int,
    path: str | Path,
    title: str,
    notes: Sequence[str] = (),
    metrics: Mapping[str, float | None] | None = None,
    mark: float = 0.0,
) -> None:
    """Write one HTML file that needs no other: a player and a spectrogram of each clip (C, T) in [-1, 1].

    `notes` are paragraphs under the title, `metrics` a table with units, `mark` as in `mel_sheet`. Everything
    is plain text and is escaped. A second of mono at 16 kHz takes 43 kB, a spectrogram about 75: choose how
    many clips to show, and how long. `ValueError` for no clips, empty ones, NaN, or other shapes.
    """
    import jinja2

    check_rows(rows)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    page = environment.from_string(PAGE).render(
        title=title,
        notes=notes,
        metrics=[
            (what.name, shown(key, value), what.unit, what.better)
            for key, value in (metrics or {}).items()
            for what in (quantity(key),)
        ],
        rows=[(name, _players(clips, sample_rate, mark)) for name, clips in rows],
    )
    save_picture(path, lambda beside: beside.write_text(page, encoding="utf-8"))


def _players(clips: Mapping[str, Tensor], sample_rate: int, mark: float) -> list[tuple[str, float, str, str]]:
    """(label, seconds, WAV and PNG in base64) of each clip."""
    pictures = spectrogram_pngs(clips, sample_rate, mark)
    return [
        (label, x.shape[-1] / sample_rate, _base64(_wav(x, sample_rate)), _base64(pictures[label]))
        for label, x in clips.items()
    ]


def _wav(x: Tensor, sample_rate: int) -> bytes:
    """A clip (C, T) in [-1, 1] as a WAV file of 16 bits."""
    import soundfile

    check_rows([("clip", {"": x})])
    samples = rearrange((x.detach().cpu().float().clamp(-1, 1) * 32767).round().short(), "c t -> t c")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.numpy(), sample_rate, subtype="PCM_16", format="WAV")
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _slug(text: str) -> str:
    """At most 24 letters, digits and dashes; file names may have 255 bytes."""
    return re.sub(r"[\W_]+", "-", text)[:24].strip("-")
