"""What a tokenizer's card says of it: summary, tags and an example of use.

Left out: measures, which the training scripts add, and the template (`card_template.md`).
"""

from typing import Any

from tokenizer.modalities import Modality


def describe(
    modality: Modality, stride: int, kind: str, codes: tuple[int, float] | None, latent_dim: int
) -> dict[str, Any]:
    """Fields for `HubModel.card_fields`; `codes`: (codebooks, bits per code) of a quantizer, None: a VAE."""
    usage = (
        "from tokenizer import Tokenizer\n\n"
        'tok = Tokenizer.from_pretrained("path/or/hub-id/of/this/model")\n'
        'x = tok.preprocess("picture.png")  # (1, C, H, W) in [-1, 1]\n'
    )
    each = f"for every {stride} × {stride} pixels"
    if codes is not None:
        what = f"discrete codes ({kind}), {codes[0] * codes[1]:g} bits {each}"
        usage += "codes = tok.encode(x)  # (1, K, h, w) int64\nx_hat = tok.decode(codes, size=x.shape[2:])\n"
    else:
        what = f"a Gaussian posterior over {latent_dim} channels {each}"
        usage += "z = tok.posterior(x).sample()\nx_hat = tok.decode_latents(z, size=x.shape[2:])\n"
    return {
        "pipeline_tag": modality.pipeline_tag,
        "tags": ["tokenizer", "vae" if codes is None else "vq-vae", modality.name],
        "summary": f"A convolutional tokenizer of {modality.name}s: it turns them into {what}, and back.",
        "usage": usage + "picture = tok.postprocess(x_hat)[0]",
    }
