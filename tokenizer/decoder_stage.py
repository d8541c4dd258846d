"""A tokenizer of which the decoder alone learns, while every code stays as it is.

Left out: what it learns from beyond the data (`adversarial.py`, `perceptual.py`), and the loop
(`pipelines/train_decoder.py`).
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from tokenizer.config import TokenizerConfig
from tokenizer.distributed import Step
from tokenizer.losses import reconstruction_losses
from tokenizer.modalities.image import ResidualBlock
from tokenizer.model import Tokenizer


class DecoderOutput(NamedTuple):
    """x_hat (B, C, *size) with a gradient of the decoder; weighted losses and unweighted stats, scalars."""

    x_hat: Tensor
    losses: dict[str, Tensor]
    stats: dict[str, Tensor]


class DecoderStage(nn.Module):
    """Trains the decoder of `tok`, which is changed in place: its encoder and bottleneck take no gradient,
    and are in eval mode whatever the mode is. `losses` are the weights of the reconstruction losses."""

    def __init__(self, tok: Tokenizer, losses: Mapping[str, float]) -> None:
        super().__init__()
        self.tok, self.losses = tok, dict(losses)
        for part in self._frozen():
            part.requires_grad_(False)

    def _frozen(self) -> tuple[nn.Module, nn.Module]:
        return self.tok.encoder, self.tok.bottleneck

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def forward(self, x: Tensor, step: Step | None = None) -> DecoderOutput:
        """x: (B, C, *size) in [-1, 1]. `step` keys what is random: how many codebooks of an RVQ an example is
        decoded from, the sample of a VAE."""
        tok = self.tok
        x = tok.prepared(x)
        with torch.no_grad():
            z_q = tok.bottleneck.frozen(tok._latents(x), step)
        x_hat = tok._crop(tok._decoded(z_q), x.shape[2:])
        # Half precision is read here, not by each loss, so that all gradients meet in what is given back.
        x_hat = x_hat.to(torch.promote_types(x_hat.dtype, torch.float32))
        terms = reconstruction_losses(x_hat, x, self.losses, tok.modality.sample_rate)
        losses = {k: self.losses[k] * v for k, v in terms.items()}
        return DecoderOutput(x_hat, losses, {k: v.detach() for k, v in terms.items()})


def with_decoder(tok: Tokenizer, config: TokenizerConfig) -> Tokenizer:
    """A tokenizer of a config that differs from that of `tok` in its decoder alone, with the encoder and the
    bottleneck of `tok`; the decoder has learnt nothing yet."""
    changed = Tokenizer(config).to(tok.device)
    changed.encoder.load_state_dict(tok.encoder.state_dict())
    changed.bottleneck.load_state_dict(tok.bottleneck.state_dict())
    return changed


def begin_as(new: nn.Module, old: nn.Module) -> bool:
    """Give a new decoder the weights of another one that differs in nothing, or has fewer residual blocks on
    some levels. Further blocks add nothing at first, so that both decode alike (Chen et al. 2015, arXiv
    1511.05641, section 2.3). Whether it could be done; if not, nothing is changed."""
    pairs, further = [(new, old)], list[ResidualBlock]()
    if isinstance(new, nn.Sequential) and isinstance(old, nn.Sequential):
        pairs, left = [], list(old)
        for layer in new:
            if left and type(left[0]) is type(layer):
                pairs.append((layer, left.pop(0)))
            elif isinstance(layer, ResidualBlock):
                further.append(layer)
            else:
                return False
        if left:
            return False
    states = [(layer, given.state_dict()) for layer, given in pairs]
    for layer, state in states:
        if {k: v.shape for k, v in layer.state_dict().items()} != {k: v.shape for k, v in state.items()}:
            return False
    for layer, state in states:
        layer.load_state_dict(state)
    for block in further:  # whose weights of the second convolution begin at zero
        assert block.conv2.bias is not None
        nn.init.zeros_(block.conv2.bias)
    return True
