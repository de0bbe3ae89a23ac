"""GPT-1 as Hugging Face keeps it: kernels (in, out); query, key and value in one array.

Its embeddings are two tables, so only a model of which they are "separate" can be saved.
"""

import re

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.gpt1 import GPT1Config
from reference.pretrained.gpt2 import SIZES, conv1d
from reference.pretrained.names import embedding, norm
from reference.pretrained.settings import check_fixed

FIXED = {
    "afn": "gelu",  # of which the name means the tanh form here
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def read_config(settings, source):
    """The GPT1Config of some settings; one that is left out has Hugging Face's default."""
    if missing := [name for name in SIZES.values() if name not in settings]:
        raise CheckpointError(f"{source} has no {', '.join(missing)}: copy it again")
    rate = settings.get("resid_pdrop", 0.1)
    try:
        config = GPT1Config(**{ours: settings[name] for ours, name in SIZES.items()}, dropout=rate)
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{source}: {error}") from None
    ours = FIXED | dict.fromkeys(DROPOUTS, rate)
    check_fixed(settings, ours, source, defaults=ours | dict.fromkeys(DROPOUTS, 0.1))
    return config


def write_config(config):
    """The settings of a GPT1Config."""
    sizes = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    about = {"model_type": "openai-gpt", "architectures": ["OpenAIGPTLMHeadModel"]}
    return about | sizes | dict.fromkeys(DROPOUTS, config.dropout) | FIXED


def stored(config):
    """Where each parameter lies."""
    blocks = []
    for layer in range(config.layers):
        h = f"transformer.h.{layer}"
        attention = {
            name: conv1d(f"{h}.attn.c_attn", part, 3)
            for part, name in enumerate(("query", "key", "value"))
        }
        attention |= {"out": conv1d(f"{h}.attn.c_proj")}
        hidden = {"up": conv1d(f"{h}.mlp.c_fc"), "down": conv1d(f"{h}.mlp.c_proj")}
        blocks.append(
            {
                "attention": {"sublayer": attention, "norm": norm(f"{h}.ln_1")},
                "feed_forward": {"sublayer": hidden, "norm": norm(f"{h}.ln_2")},
            }
        )
    tables = {"token": embedding("transformer.tokens_embed")}
    tables |= {"position": embedding("transformer.positions_embed")}
    return tree.flatten(tables | {"blocks": blocks})


def holds(config):
    """Whether such a GPT-1 can be written so: two tables, and no classifier."""
    return config.embeddings == "separate" and config.classes is None


BUFFERS = re.compile(r"(transformer\.)?(h\.[0-9]+\.attn\.bias|position_ids)")  # the causal mask
TIED = {"lm_head.weight": "token.embedding"}
FAMILY = (read_config, write_config, stored, "transformer.", BUFFERS, TIED, holds)
