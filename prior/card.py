"""What a prior's card says of it: summary, tags and an example of use.

Left out: measures, which the training script adds, and the template (`tokenizer/card_template.md`).
"""

import json
from typing import Any

from prior.config import PriorConfig
from tokenizer.hub.embedded import EMBEDDED


def describe(config: PriorConfig) -> dict[str, Any]:
    """Fields for `HubModel.card_fields`."""
    classes = f"one of {len(config.class_names)} classes" if config.class_names else "no class"
    grid = " × ".join(map(str, config.grid))
    order = " It knows every order of positions (`order: any`)." if config.order == "any" else ""
    ships = config.tokenizer_id.startswith(EMBEDDED)
    known = ships or "/" in config.tokenizer_id
    named, folder = config.tokenizer_id if known else "path/or/hub-id", ""
    if not ships:
        named, _, folder = named.partition(":")
    within = f", subfolder={json.dumps(folder)}" if folder else ""
    where = "" if known or not config.tokenizer_id else " (a folder beside it, not known to be on the Hub)"
    label = f", label={json.dumps(config.class_names[0])}" if config.class_names else ""
    return {
        # The Hub has no tag for sound that is made from nothing; `text-to-audio` takes a text.
        "pipeline_tag": "unconditional-image-generation" if len(config.grid) == 2 else None,
        "tags": ["autoregressive", "transformer", "prior"],
        "summary": (
            f"An autoregressive transformer over the codes of a tokenizer: {config.num_codes} codes of "
            f"{config.codebook_size} values, on a grid of {grid}, given {classes}. It samples new codes, "
            f"which the tokenizer decodes, and gives their exact likelihood.{order} Its tokenizer: "
            f"`{config.tokenizer_id or 'not recorded'}`{where}, fingerprint "
            f"`{config.tokenizer_fingerprint or 'not recorded'}`."
        ),
        "usage": (
            "from prior import Prior\nfrom tokenizer import Tokenizer\n\n"
            'prior = Prior.from_pretrained("path/or/hub-id/of/this/prior")\n'
            f"tokenizer = Tokenizer.from_pretrained({json.dumps(named)}{within})\n"
            "prior.check_tokenizer(tokenizer.fingerprint())\n"
            f"codes = prior.sample(16{label})\n"
            "new = tokenizer.postprocess(tokenizer.decode(codes))"
        ),
    }
