"""GPT-Neo as Hugging Face keeps it: the one published model with GPT-3's dense and banded blocks.

It multiplies query and key without 1/√K, and has no biases in query, key and value.  So our query's
kernel is √K times theirs, and those biases are 0: only a model of which they are can be saved.
"""

import re

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.gpt import GPTConfig
from reference.pretrained.names import Stored, embedding, linear, norm
from reference.pretrained.settings import check_fixed

SIZES = {
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_layers",
    "heads": "num_heads",
    "width": "hidden_size",
}
FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
DROPOUTS = ("resid_dropout", "embed_dropout", "attention_dropout")
TURNS, WINDOW = ["global", "local"], 256  # 256: Hugging Face's default


def read_config(settings, source):
    """The GPTConfig of some settings: with a band, or without where all blocks are dense."""
    if missing := [name for name in SIZES.values() if name not in settings]:
        raise CheckpointError(f"{source} has no {', '.join(missing)}: copy it again")
    rate = settings.get("resid_dropout", 0.0)
    sizes = {ours: settings[name] for ours, name in SIZES.items()}
    try:
        config = GPTConfig(**sizes, dropout=rate)
        config = GPTConfig(**sizes, dropout=rate, band=read_band(settings, config.layers, source))
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{source}: {error}") from None
    ours = FIXED | dict.fromkeys(DROPOUTS, rate) | {"intermediate_size": 4 * config.width}
    check_fixed(settings, ours, source, defaults=ours | dict.fromkeys(DROPOUTS, 0.0))
    return config


def read_band(settings, layers, source):
    """How many positions a local block sees, or None.  Raises CheckpointError for other turns."""
    types = settings.get("attention_types") or [[TURNS, 12]]
    try:
        several = sum(len(turns) * times for turns, times in types) == layers
        kinds = [kind for turns, times in types for kind in list(turns) * times] if several else []
    except (TypeError, ValueError):
        kinds = []
    if kinds == in_turns(layers):
        return settings.get("window_size", WINDOW)
    if kinds == TURNS[:1] * layers:
        return None
    raise CheckpointError(
        f"{source}: attention_types is {types!r:.200}, and must be global and local in turns, or "
        f"global alone, for {layers} blocks: give another"
    )


def in_turns(layers):
    """The kind of each block."""
    return [TURNS[layer % 2] for layer in range(layers)]


def write_config(config):
    """The settings of a GPTConfig with a band."""
    sizes = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    about = {"model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"]}
    turns = {"attention_types": [[in_turns(config.layers), 1]], "window_size": config.band}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), config.vocabulary - 1)
    return about | sizes | turns | dict.fromkeys(DROPOUTS, config.dropout) | FIXED | ends


def stored(config):
    """Where each parameter lies."""
    root, blocks = (config.width // config.heads) ** 0.5, []
    for layer in range(config.layers):
        h = f"transformer.h.{layer}"
        attention = {
            name: linear(f"{h}.attn.attention.{name[0]}_proj", bias=False, factor=factor)
            | {"bias": Stored(None)}
            for name, factor in (("query", root), ("key", 1.0), ("value", 1.0))
        }
        attention |= {"out": linear(f"{h}.attn.attention.out_proj")}
        hidden = {"up": linear(f"{h}.mlp.c_fc"), "down": linear(f"{h}.mlp.c_proj")}
        blocks.append(
            {
                "attention": {"norm": norm(f"{h}.ln_1"), "sublayer": attention},
                "feed_forward": {"norm": norm(f"{h}.ln_2"), "sublayer": hidden},
            }
        )
    tables = {"token": embedding("transformer.wte"), "position": embedding("transformer.wpe")}
    return tree.flatten(tables | {"blocks": blocks, "norm": norm("transformer.ln_f")})


def holds(config):
    """Whether such a GPT can be written so: bands, heads as wide as D allows, and no other head."""
    wide = config.attention_width == config.width
    return config.band is not None and wide and config.head == "language"


BUFFERS = re.compile(r"(transformer\.)?h\.[0-9]+\.attn\.attention\.(masked_)?bias")  # masks
TIED = {"lm_head.weight": "token.embedding"}
FAMILY = (read_config, write_config, stored, "transformer.", BUFFERS, TIED, holds)
