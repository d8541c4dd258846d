"""What the graphs of a tokenizer compute: data to codes (of a VAE: mean and log-variance), and back.

Left out: the graph of a prior (`step.py`), and making files of them (`files.py`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tokenizer import Tokenizer
from tokenizer.bottlenecks.gaussian import Gaussian
from tokenizer.foreign import families
from tokenizer.search.exact import middle


def plain_nearest(z: Tensor, codebook: Tensor, distance: str) -> Tensor:
    """z (M, D), codebook (N, D) → codes (M,): the arg-min of one product in float32, centred as the exact
    search centres it; it holds M × N numbers, and near ties fall as the product rounds."""
    if distance == "cosine":
        z, codebook = F.normalize(z, dim=1), F.normalize(codebook, dim=1)
    centre = middle(codebook)
    z, entries = z - centre, codebook - centre
    # ½‖e‖² − z · e is ½‖z − e‖² less ½‖z‖², which is the same for every entry.
    return (entries.square().sum(1) / 2 - z @ entries.T).argmin(dim=1)


class PlainSearch(TorchFunctionMode):
    """Within it the operator of the exact search, which looks at values, is `plain_nearest`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.tokenloom.nearest, torch.ops.tokenloom.nearest.default):
            return plain_nearest(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class Encoder(nn.Module):
    """x (B, C, *size), sizes multiples of the stride, → codes (B, K, *grid) int64; of a VAE mean and
    log-variance (B, dim, *grid)."""

    def __init__(self, tok: Tokenizer) -> None:
        super().__init__()
        self.encoder, self.bottleneck = tok.encoder, tok.bottleneck
        self.discrete = tok.is_discrete

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        z_e = self.encoder(x)
        if self.discrete:
            codes: Tensor = self.bottleneck.encode(z_e)
            return codes
        assert isinstance(self.bottleneck, Gaussian)
        posterior = self.bottleneck.posterior(z_e)
        return posterior.mean, posterior.logvar


class Decoder(nn.Module):
    """codes (B, K, *grid) int64, of a VAE latents (B, dim, *grid), → x_hat (B, C, *grid · stride)."""

    def __init__(self, tok: Tokenizer) -> None:
        super().__init__()
        self.bottleneck, self.decoder = tok.bottleneck, tok.decoder
        self.discrete = tok.is_discrete

    def forward(self, codes: Tensor) -> Tensor:
        z = self.bottleneck.decode(codes) if self.discrete else codes
        x_hat: Tensor = self.decoder(z)
        return x_hat


def check_exportable(tok: Tokenizer, name: str) -> None:
    """`ValueError` with the reason for a tokenizer that no graph can stand for."""
    if not tok.is_discrete and not isinstance(tok.bottleneck, Gaussian):
        raise ValueError(
            f"{name} cannot be exported: its bottleneck, {tok.config.bottleneck.kind}, has neither codes nor "
            "a Gaussian posterior; export one that has"
        )
    if tok.family is not None and tok.family.untraced:
        graphs = ", ".join(kind.model_class for kind in families().values() if not kind.untraced)
        raise ValueError(
            f"{name} cannot be exported: it is {tok.family.model_class} of {tok.family.library}, and "
            f"{tok.family.untraced}, which no graph can follow; of other libraries these can be exported: "
            f"{graphs}"
        )
    check_float32(tok, name)


def check_float32(model: nn.Module, name: str) -> None:
    """`ValueError` for weights of another type: the graph would compute in float32, which gives other
    codes."""
    odd = next((n for n, p in model.named_parameters() if p.dtype != torch.float32), None)
    if odd is not None:
        kind = str(model.get_parameter(odd).dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} cannot be exported: {odd} is {kind}, and graphs compute in float32, which would give "
            'other codes; load it with dtype="float32", save_pretrained it, and export that'
        )


def padding_of(tok: Tokenizer) -> str:
    """How the modality extends data at their end, as ONNX calls it: constant (zeros) or edge. `ValueError`
    for another way."""
    modality = tok.modality
    if tok.stride == 1:
        return "constant"
    sizes = (tok.stride + 1,) * len(modality.axes)
    x = torch.randn((1, modality.channels, *sizes), generator=torch.Generator().manual_seed(0))
    padded = modality.pad(x)
    more = [0] * (2 * len(sizes))
    more[1::2] = [tok.stride - 1] * len(sizes)
    for mode, name in (("constant", "constant"), ("replicate", "edge")):
        if torch.equal(padded, F.pad(x, more, mode=mode)):
            return name
    raise ValueError(
        f"the tokenizer cannot be exported: {type(modality).__name__}.pad adds neither zeros nor copies of "
        "the last values"
    )
