"""Write text with a trained GPT."""

import shlex
import sys

import numpy as np

from reference import tree
from reference.errors import InputError
from reference.training import checkpoint
from reference.training.state import keys_of


def add_options(parser):
    add = parser.add_argument
    add("--checkpoint", metavar="FOLDER", default="runs/gpt", help="a run's folder (runs/gpt)")
    add("--prompt", default="The", help='how the text begins ("The")')
    add("--tokens", type=int, default=40, metavar="N", help="how many to write (40)")
    add(
        "--temperature",
        type=float,
        default=1.0,
        help="below 1 safer, above 1 bolder; 0: the likeliest (1)",
    )
    add("--top-k", type=int, metavar="K", help="choose among the K likeliest only (all)")
    add("--seed", type=int, default=0, metavar="N", help="another one, another text (0)")


def run(engine, options):
    """Write a text with a run's best checkpoint, or its latest where none was measured."""
    found = checkpoint.load(options.checkpoint, pointer="best")
    if found.tokenizer is None:
        raise InputError(f"{options.checkpoint} has no tokenizer; give a language model's folder")
    params = found.weights
    engine.prepare(tree.leaves(params)[0].dtype)
    prompt = np.array(found.tokenizer.encode(options.prompt), np.int32)
    written = engine.generate(
        params,
        tokens=prompt,
        steps=options.tokens,
        config=found.config,
        key=keys_of(options.seed).sample,
        temperature=options.temperature,
        top_k=options.top_k,
    )
    print(found.tokenizer.decode([*prompt.tolist(), *written.tolist()]), flush=True)
    folder = shlex.quote(str(options.checkpoint))
    print(
        f"for another text:\n    python -m {engine.name} generate --checkpoint {folder} "
        f"--prompt {shlex.quote(options.prompt)} --seed {options.seed + 1}",
        file=sys.stderr,
    )
    return 0
