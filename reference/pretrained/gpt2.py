"""GPT-2 as Hugging Face keeps it: kernels (in, out); query, key and value in one array."""

import re

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.gpt import GPTConfig
from reference.pretrained.decoder_heads import HEADS as HEADS  # handed on
from reference.pretrained.decoder_heads import read_head, stored_head, write_head
from reference.pretrained.names import Stored, embedding, norm
from reference.pretrained.settings import check_fixed

SIZES = {
    "vocabulary": "vocab_size",
    "context": "n_positions",
    "layers": "n_layer",
    "heads": "n_head",
    "width": "n_embd",
}
FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def read_config(settings, source, *, head=None, labels=None):
    """The GPTConfig of some settings; one that is left out has Hugging Face's default.

    head, labels: those that are asked for, in place of what the settings say.
    """
    if missing := [name for name in SIZES.values() if name not in settings]:
        raise CheckpointError(f"{source} has no {', '.join(missing)}: copy it again")
    rate = settings.get("resid_pdrop", 0.1)
    sizes = {ours: settings[name] for ours, name in SIZES.items()}
    asked = read_head(settings, source, head=head, labels=labels)
    try:
        config = GPTConfig(**sizes, dropout=rate, **asked)
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{source}: {error}") from None
    ours = FIXED | dict.fromkeys(DROPOUTS, rate) | {"n_inner": 4 * config.width}
    check_fixed(settings, ours, source, defaults=ours | dict.fromkeys(DROPOUTS, 0.1))
    return config


def write_config(config):
    """The settings of a GPTConfig."""
    sizes = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    about = {"model_type": "gpt2"} | write_head(config, "GPT2", "GPT2LMHeadModel")
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), config.vocabulary - 1)
    return about | sizes | dict.fromkeys(DROPOUTS, config.dropout) | FIXED | ends


def stored(config):
    """Where each parameter lies."""
    blocks = []
    for layer in range(config.layers):
        h, joined = f"transformer.h.{layer}", {}
        for part, name in enumerate(("query", "key", "value")):
            joined[name] = conv1d(f"{h}.attn.c_attn", part, 3)
        attention = joined | {"out": conv1d(f"{h}.attn.c_proj")}
        hidden = {"up": conv1d(f"{h}.mlp.c_fc"), "down": conv1d(f"{h}.mlp.c_proj")}
        blocks.append(
            {
                "attention": {"norm": norm(f"{h}.ln_1"), "sublayer": attention},
                "feed_forward": {"norm": norm(f"{h}.ln_2"), "sublayer": hidden},
            }
        )
    tables = {"token": embedding("transformer.wte")}
    tables |= {"position": embedding("transformer.wpe")}
    body = tables | {"blocks": blocks, "norm": norm("transformer.ln_f")}
    return tree.flatten(body | stored_head(config))


def conv1d(name, part=0, parts=1):
    """A kernel and bias of Hugging Face's Conv1D, which are as ours."""
    return {
        "kernel": Stored(f"{name}.weight", None, part, parts),
        "bias": Stored(f"{name}.bias", None, part, parts),
    }


def holds(config):
    """Whether such a GPT can be written so: all blocks dense, the heads as wide as D allows."""
    return config.band is None and config.attention_width == config.width


BUFFERS = re.compile(r"(transformer\.)?h\.[0-9]+\.attn\.(masked_)?bias")  # the causal mask, once
TIED = {"lm_head.weight": "token.embedding"}
FAMILY = (read_config, write_config, stored, "transformer.", BUFFERS, TIED, holds)
