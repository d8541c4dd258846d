"""What a tokenizer's card says of it: summary, tags and an example of use.

Left out: measures, which the training scripts add, and the template (`card_template.md`).
"""

from typing import Any

from tokenizer.modalities import Modality


def describe(
    modality: Modality, stride: int, kind: str, codes: tuple[int, float] | None, latent_dim: int
) -> dict[str, Any]:
    """Fields for `HubModel.card_fields`; `codes`: (codebooks, bits per code) of a quantizer, None: a VAE."""
    rate = modality.sample_rate
    what, them, file, result = modality.card_words()
    shape, grid, size = ("(1, C, H, W)", "h, w", "x.shape[2:]")
    each = f"for every {stride} × {stride} pixels"
    if modality.timed:
        shape, grid, size = ("(1, C, T)", "t", "x.shape[2]")
        each = f"for every {stride} samples ({rate / stride:g} times per second)"
    usage = (
        "from tokenizer import Tokenizer\n\n"
        'tok = Tokenizer.from_pretrained("path/or/hub-id/of/this/model")\n'
        f'x = tok.preprocess("{file}")  # {shape} in [-1, 1]\n'
    )
    if codes is not None:
        made = f"discrete codes ({kind}), {codes[0] * codes[1]:g} bits {each}"
        if modality.timed:
            made += f", {codes[0] * codes[1] * rate / stride / 1000:g} kbit/s"
        usage += f"codes = tok.encode(x)  # (1, K, {grid}) int64\nx_hat = tok.decode(codes, size={size})\n"
    else:
        made = f"a Gaussian posterior over {latent_dim} channels {each}"
        usage += f"z = tok.posterior(x).sample()\nx_hat = tok.decode_latents(z, size={size})\n"
    return {
        "pipeline_tag": modality.pipeline_tag,
        "tags": ["tokenizer", "vae" if codes is None else "vq-vae", modality.name],
        "summary": f"A convolutional tokenizer of {what}: it turns {them} into {made}, and back.",
        "usage": usage + result,
    }
