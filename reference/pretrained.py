"""Published weights: a GPT-2 folder in Hugging Face's form, as the tree of both engines.

    config.json         the sizes, and settings of which our GPT has one value only
    model.safetensors   the arrays; or several such files, and model.safetensors.index.json

Its tokenizer is read by `BPE.load`.
"""

import json
import re
from pathlib import Path

import numpy as np

from reference import tree
from reference.errors import CheckpointError, InputError
from reference.models.gpt import GPTConfig, parameter_shapes
from reference.training.checkpoint import check_fit, open_arrays, read_json

# Where Hugging Face keeps what is ours: a block's modules below "h.N.", the others at the top.
# One array holds query, key and value, side by side.
MODULES = {
    "token": "wte",
    "position": "wpe",
    "attention.norm": "ln_1",
    "attention.sublayer.query": "attn.c_attn",
    "attention.sublayer.key": "attn.c_attn",
    "attention.sublayer.value": "attn.c_attn",
    "attention.sublayer.out": "attn.c_proj",
    "feed_forward.norm": "ln_2",
    "feed_forward.sublayer.up": "mlp.c_fc",
    "feed_forward.sublayer.down": "mlp.c_proj",
    "norm": "ln_f",
}
SIZES = {
    "vocabulary": "vocab_size",
    "context": "n_positions",
    "layers": "n_layer",
    "heads": "n_head",
    "width": "n_embd",
}
SETTINGS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
BUFFERS = re.compile(r"(transformer\.)?h\.[0-9]+\.attn\.(masked_)?bias")  # the causal mask, once


def load(directory):
    """The GPTConfig and the float32 parameters of a folder with a GPT-2 of Hugging Face's.

    Kernels are stored (in, out) there too.  Half-precision files are widened.
    Raises CheckpointError for a file that is missing or torn, for settings that our GPT does not
    have, and for arrays that are missing, left over or of another shape: all of them by name.
    """
    config = _read_config(Path(directory, "config.json"))
    shapes, paths_in = parameter_shapes(config), {}
    for path in shapes:
        paths_in.setdefault(_published_name(path), []).append(path)
    arrays = _read_weights(Path(directory))
    output = arrays.pop("lm_head.weight", None)
    stored_shapes = {}
    for name, paths in paths_in.items():
        *rest, last = shapes[paths[0]]
        stored_shapes[name] = (*rest, last * len(paths))
    check_fit(directory, arrays, stored_shapes)
    if output is not None and not np.array_equal(output, arrays["wte.weight"]):
        raise CheckpointError(
            f"{directory}: lm_head.weight is not equal to wte.weight, and our GPT has one table "
            "for both; give a model with tied embeddings"
        )
    params = {}
    for name, paths in paths_in.items():
        parts = np.split(arrays.pop(name), len(paths), axis=-1)
        for path, part in zip(paths, parts, strict=True):
            params[path] = np.array(part, np.float32, order="C")
    return config, tree.unflatten(params)


def _read_config(path):
    """The GPTConfig of a config.json; a setting that is left out has Hugging Face's default."""
    given = read_json(path)
    if given.get("model_type") != "gpt2":
        raise CheckpointError(f"{path}: model_type is {given.get('model_type')!r}; give a 'gpt2'")
    if missing := [name for name in SIZES.values() if name not in given]:
        raise CheckpointError(f"{path} has no {', '.join(missing)}: copy it again")
    rate = given.get("resid_pdrop", 0.1)
    try:
        config = GPTConfig(**{ours: given[name] for ours, name in SIZES.items()}, dropout=rate)
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    ours = SETTINGS | {"embd_pdrop": rate, "attn_pdrop": rate, "n_inner": 4 * config.width}
    defaults = ours | {"embd_pdrop": 0.1, "attn_pdrop": 0.1}
    theirs = defaults | {name: value for name, value in given.items() if value is not None}
    for name, value in ours.items():
        if theirs[name] != value:
            raise CheckpointError(
                f"{path}: {name} is {theirs[name]!r}, and must be {value!r} for our GPT: "
                "give another model"
            )
    return config


def _read_weights(directory):
    """All arrays of a folder, by Hugging Face's names without the leading "transformer."."""
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists() and not (directory / files[0]).exists():
        placed = read_json(index).get("weight_map")
        files = sorted(set(map(str, placed.values()))) if isinstance(placed, dict) else []
        if not files or any(Path(name).name != name for name in files):
            raise CheckpointError(f"{index} has no weight_map of names to files: copy it again")
    arrays = {}
    for path in (directory / name for name in files):
        with open_arrays(path) as file:
            names = [name for name in file.keys() if not BUFFERS.fullmatch(name)]
            arrays |= {name.removeprefix("transformer."): _read(path, file, name) for name in names}
    return arrays


def _read(path, file, name):
    """An array of an open file; bfloat16, which NumPy lacks, is the upper half of a float32.

    A file is the length of its header (8 bytes), the header (JSON), and the arrays' bytes.
    """
    dtype = file.get_slice(name).get_dtype()
    if dtype in ("F16", "F32"):
        return file.get_tensor(name)
    if dtype != "BF16":
        raise CheckpointError(f"{path}: {name} is {dtype}; give float32, float16 or bfloat16")
    with open(path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        entry = json.loads(raw.read(length))[name]
    begin, end = entry["data_offsets"]
    halves = np.fromfile(path, "<u2", count=(end - begin) // 2, offset=8 + length + begin)
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def _published_name(path):
    """blocks.3.attention.sublayer.query.kernel -> h.3.attn.c_attn.weight."""
    module, leaf = path.rsplit(".", 1)
    place = ""
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
        place = f"h.{layer}."
    return f"{place}{MODULES[module]}.{'bias' if leaf == 'bias' else 'weight'}"
