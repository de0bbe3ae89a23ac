"""Write text with a language model."""

import numpy as np

from reference import tree
from reference.commands import model
from reference.commands.train import command, flag
from reference.errors import InputError
from reference.training.state import keys_of

PROMPT, TOKENS, GUESSES, ALPHA = "The", 40, 4, 0.6
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
REPEATED = ("prompt", "stop")


def add_options(parser):
    model.add_options(parser)
    add = parser.add_argument
    add(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="how the text begins; several of them, several texts "
        f'("{PROMPT}"; nothing, where the model learnt from documents)',
    )
    add(
        "--tokens",
        type=int,
        metavar="N",
        help=f"how many to write ({TOKENS}, or what the context has room for)",
    )
    add("--stop", metavar="TEXT", action="append", help="a token to end with; several: any of them")
    sampling_options(parser.add_argument_group("what comes next").add_argument)
    search_options(parser.add_argument_group("other ways to write").add_argument)


def sampling_options(add):
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="below 1 safer, above 1 bolder; 0: the likeliest (1)",
    )
    add("--top-k", type=int, metavar="K", help="choose among the K likeliest only (all)")
    add("--top-p", type=float, metavar="P", help="among the likeliest that have P together (all)")
    add("--min-p", type=float, metavar="P", help="among those with P times the best's (all)")
    add(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="above 1: tokens that are there are less likely (1)",
    )
    add("--seed", type=int, default=0, metavar="N", help="another one, another text (0)")


def search_options(add):
    add("--beams", type=int, metavar="N", help="search with so many beginnings for the likeliest")
    add(
        "--length-penalty",
        type=float,
        metavar="ALPHA",
        help=f"of that search: 0 likes short texts, 1 long ones ({ALPHA})",
    )
    add(
        "--draft",
        metavar="FOLDER",
        help="a smaller model, a run's or published, to guess tokens ahead: a text sooner",
    )
    add("--guesses", type=int, metavar="N", help=f"of the draft, before they are tried ({GUESSES})")


def run(engine, options):
    """Write a text with a run's best checkpoint, or its latest where none was measured; or with
    published weights.
    """
    check_together(options)
    found = model.language_model(options)
    engine.prepare(tree.leaves(found.params)[0].dtype)
    encode = found.tokenizer.encode
    prompts = [
        np.array([*found.before, *encoded(encode, "prompt", text)], np.int32)
        for text in options.prompt or [default_prompt(encode, found)]
    ]
    room = max(found.config.context - max(map(len, prompts)), 1)
    task = {
        "steps": min(TOKENS, room) if options.tokens is None else options.tokens,
        "config": found.config,
    }
    ends = found.ends + tuple(stop_token(found.tokenizer, text) for text in options.stop or ())
    way = drawn
    if options.beams is not None:
        way = searched
    elif options.draft is not None:
        way = drafted
    texts = zip(prompts, way(engine, options, found, prompts, ends, task), strict=True)
    unseen = {*found.before, *found.ends}
    for tokens in (np.concatenate(text).tolist() for text in texts):
        print(found.tokenizer.decode([token for token in tokens if token not in unseen]))
    if way is searched:
        return 0, f"for other ways to write:\n    {command(engine, 'generate', '--help')}"
    return 0, f"for another text:\n    {another(engine, options)}"


def drawn(engine, options, found, prompts, ends, task):
    """What each prompt goes on with: token by token."""
    task |= given_in(options, (*SAMPLING, "repetition_penalty"))
    task |= {"key": keys_of(options.seed).sample, "stop": ends}
    if len(prompts) == 1:
        return [engine.generate(found.params, tokens=prompts[0], **task)]
    return engine.generate(found.params, tokens=prompts, **task)


def searched(engine, options, found, prompts, ends, task):
    """The likeliest texts that a beam finds."""
    alpha = ALPHA if options.length_penalty is None else options.length_penalty
    search = {"beams": options.beams, "alpha": alpha, "end": ends or None}
    for prompt in prompts:
        best = engine.beam_generate(found.params, tokens=prompt[None], **task, **search)
        yield best.tokens[0, 0, : best.lengths[0, 0]]


def drafted(engine, options, found, prompts, ends, task):
    """What is drawn with the help of a draft."""
    draft = model.either(options.draft)
    task |= given_in(options, SAMPLING)
    task |= {"key": keys_of(options.seed).sample, "stop": ends, "draft_config": draft.config}
    task |= {"window": GUESSES if options.guesses is None else options.guesses}
    for prompt in prompts:
        yield engine.speculate(found.params, draft.params, tokens=prompt, **task)[0]


def check_together(options):
    """Raise InputError for options of which one has no meaning beside another."""
    sampling = given_in(options, (*SAMPLING, "repetition_penalty"))
    for way, others in (
        ("beams", (*sampling, "draft", "guesses")),
        ("draft", ("repetition_penalty", "length_penalty")),
    ):
        for other in others:
            if getattr(options, way) is not None and getattr(options, other) is not None:
                raise InputError(f"{flag(other)} has no meaning beside {flag(way)}; leave one out")
    for name, way in (("length_penalty", "beams"), ("guesses", "draft")):
        if getattr(options, name) is not None and getattr(options, way) is None:
            raise InputError(f"{flag(name)} has no meaning without {flag(way)}; give both")


def given_in(options, names):
    """Those of some options that are given, by name."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def default_prompt(encode, found):
    """How a text begins where nobody says it."""
    if found.before:
        return ""
    try:
        encode(PROMPT)
    except InputError:  # characters, of a text without a T
        return found.tokenizer.decode([0])
    return PROMPT


def encoded(encode, name, text):
    """The tokens of a text that was given on the command line."""
    try:
        return encode(text)
    except InputError as error:
        raise type(error)(f"{flag(name)}: {error}") from None


def stop_token(tokenizer, text):
    """The one token that a text is."""
    if text in tokenizer.special_ids:
        return tokenizer.special_ids[text]
    tokens = encoded(tokenizer.encode, "stop", text)
    if len(tokens) != 1:
        raise InputError(
            f"--stop: {text!r} is {len(tokens)} tokens of this model; give a text that is one"
        )
    return tokens[0]


def another(engine, options):
    """The same command line with another seed."""
    words = []
    for name in (*REPEATED, "tokens", *SAMPLING, "repetition_penalty", "draft", "guesses"):
        value = getattr(options, name)
        values = value if name in REPEATED else [value]
        # With "=", since a prompt may begin with a dash.
        words += [f"{flag(name)}={v}" for v in values or () if v is not None]
    return command(engine, "generate", *model.named_in(options), *words, "--seed", options.seed + 1)
