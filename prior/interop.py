"""A prior as a `LlamaForCausalLM` of transformers, to be served by the tools that know it.

Left out: the way back, and guidance, which those tools have under names of their own.
"""

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from prior.layers import NORM_EPS
from prior.network import PriorNetwork

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def to_llama(prior: PriorNetwork) -> "LlamaForCausalLM":
    """A Llama with the logits of `prior`, in its dtype, in eval mode.

    Its vocabulary holds code c of codebook k as k · N + c, then the classes, then "no class". A sequence
    begins with its class; the codes follow in the pattern's order. Logits of the step that predicts codebook
    k are those at k · N to (k + 1) · N - 1; the others mean nothing there, those of classes are 0.

    Raises `ValueError` where the config has what Llama has not, with what to train instead, and if
    transformers is not installed.
    """
    config = prior.config
    obstacles = {
        "every order (order)": (config.order == "any", "order raster"),
        "several codes per step (pattern)": (prior.pattern.width > 1, "pattern flatten"),
        "rotary positions of several axes (rotary)": (
            config.rotary == "grid" and len(config.grid) > 1,
            "rotary sequence",
        ),
        "rotary positions of frames, of which each has several steps (rotary)": (
            config.rotary == "grid" and len(config.grid) == 1 and config.num_codebooks > 1,
            "rotary sequence",
        ),
        "normalised queries and keys (qk_norm)": (config.qk_norm, "no qk_norm"),
        "embeddings of what is predicted (target_embedding)": (
            config.target_embedding,
            "no target_embedding",
        ),
    }
    found = {what: instead for what, (there, instead) in obstacles.items() if there}
    if found:
        raise ValueError(
            f"this prior is no Llama: it has {', '.join(found)}; train one with "
            f"{', '.join(dict.fromkeys(found.values()))} (train_prior.py's preset llama does)"
        )
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ValueError(
            f"to_transformers needs transformers ({error}); "
            "pip install -c pipelines/configs/constraints.txt transformers"
        ) from error
    codes = config.num_codebooks * config.codebook_size
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=codes + len(config.class_names) + 1,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=prior.pattern.num_steps + 1,
            rms_norm_eps=NORM_EPS,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    llama.to(prior.head.device, prior.head.dtype)  # type: ignore[arg-type]
    llama.load_state_dict(_weights(prior))
    llama.eval()
    return llama


def _weights(prior: PriorNetwork) -> dict[str, Tensor]:
    """The prior's weights under Llama's names."""
    state = prior.state_dict()
    head = rearrange(state["head"], "k n d -> (k n) d")
    classes = state["class_embedding.weight"]
    weights = {
        "model.embed_tokens.weight": torch.cat([state["code_embedding.weight"], classes]),
        "model.norm.weight": state["norm.weight"],
        "lm_head.weight": torch.cat([head, torch.zeros_like(classes)]),
    }
    for i in range(prior.config.depth):
        ours, llama = f"blocks.{i}.", f"model.layers.{i}."
        q, k, v = state[f"{ours}attention.qkv.weight"].chunk(3)
        weights |= {
            f"{llama}self_attn.q_proj.weight": _halves(q, prior.config.heads),
            f"{llama}self_attn.k_proj.weight": _halves(k, prior.config.heads),
            f"{llama}self_attn.v_proj.weight": v,
            f"{llama}self_attn.o_proj.weight": state[f"{ours}attention.out.weight"],
            f"{llama}input_layernorm.weight": state[f"{ours}attention_norm.weight"],
            f"{llama}post_attention_layernorm.weight": state[f"{ours}ffn_norm.weight"],
            f"{llama}mlp.gate_proj.weight": state[f"{ours}ffn.gate.weight"],
            f"{llama}mlp.up_proj.weight": state[f"{ours}ffn.up.weight"],
            f"{llama}mlp.down_proj.weight": state[f"{ours}ffn.out.weight"],
        }
    return weights


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of heads whose channels turn in pairs (2i, 2i + 1) → those where (i, i + d / 2) turn."""
    return rearrange(weight, "(h pair two) d -> (h two pair) d", h=heads, two=2)
