"""Write text with a trained GPT."""

import numpy as np

from reference import tree
from reference.commands.evaluate import language_model
from reference.commands.train import command
from reference.data.source import is_table
from reference.errors import InputError
from reference.tokenizers.bpe import END_OF_TEXT
from reference.training.state import keys_of

PROMPT, TOKENS = "The", 40


def add_options(parser):
    add = parser.add_argument
    add("--checkpoint", metavar="FOLDER", default="runs/gpt", help="a run's folder (runs/gpt)")
    add(
        "--prompt",
        metavar="TEXT",
        help=f'how the text begins ("{PROMPT}"; nothing, where the model learnt from documents)',
    )
    add(
        "--tokens",
        type=int,
        metavar="N",
        help=f"how many to write ({TOKENS}, or what the context has room for)",
    )
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="below 1 safer, above 1 bolder; 0: the likeliest (1)",
    )
    add("--top-k", type=int, metavar="K", help="choose among the K likeliest only (all)")
    add("--seed", type=int, default=0, metavar="N", help="another one, another text (0)")


def run(engine, options):
    """Write a text with a run's best checkpoint, or its latest where none was measured.

    A model that learnt from documents writes one: the token that begins each is put before it, and
    where it writes that token again, the document is at its end.
    """
    _, found = language_model(options.checkpoint)
    engine.prepare(tree.leaves(found.weights)[0].dtype)
    tokenizer = found.tokenizer
    separator = None
    if is_table(found.settings.get("data")):
        separator = tokenizer.special_ids[END_OF_TEXT]
    before = () if separator is None else (separator,)
    prompt = np.array([*before, *prompt_of(options, tokenizer, separator)], np.int32)
    room = max(found.config.context - len(prompt), 1)
    written = engine.generate(
        found.weights,
        tokens=prompt,
        steps=min(TOKENS, room) if options.tokens is None else options.tokens,
        config=found.config,
        key=keys_of(options.seed).sample,
        temperature=1.0 if options.temperature is None else options.temperature,
        top_k=options.top_k,
        stop=before,
    )
    text = [token for token in (*prompt.tolist(), *written.tolist()) if token != separator]
    print(tokenizer.decode(text))
    return 0, f"for another text:\n    {another(engine, options)}"


def prompt_of(options, tokenizer, separator):
    """The tokens of the prompt."""
    if options.prompt is not None:
        try:
            return tokenizer.encode(options.prompt)
        except InputError as error:
            raise type(error)(f"--prompt: {error}") from None
    if separator is not None:
        return []
    try:
        return tokenizer.encode(PROMPT)
    except InputError:  # characters, of a text without a T
        return [0]


def another(engine, options):
    """The same command line with another seed."""
    names = ("prompt", "tokens", "temperature", "top_k")
    given = {name: getattr(options, name) for name in names}
    # With "=", since a prompt may begin with a dash.
    words = [f"--{n.replace('_', '-')}={v}" for n, v in given.items() if v is not None]
    first = ("generate", "--checkpoint", options.checkpoint)
    return command(engine, *first, *words, "--seed", options.seed + 1)
