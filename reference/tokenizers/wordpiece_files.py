"""A WordPiece vocabulary in files: BERT's vocab.txt, and the two of Hugging Face beside it.

vocab.txt               a piece on each line; the line says its id
tokenizer_config.json   whether case and accents are ignored, and further special tokens
tokenizer.json          all of it in one

Source: Devlin et al. 2018, released code (vocab.txt); Hugging Face transformers, released code.
"""

import json
from pathlib import Path

from reference.errors import CheckpointError
from reference.tokenizers.tokenizer_json import (
    check_options,
    check_part,
    vocabulary_of,
)
from reference.tokenizers.vocabulary_files import (
    check_not_hidden,
    read_json,
    read_text,
    write_file,
)

RULES = {"lower": "do_lower_case", "strip_accents": "strip_accents"}
RULES |= {"split_cjk": "tokenize_chinese_chars"}
DEFAULTS = {"lower": True, "strip_accents": None, "split_cjk": True}
MORE = "additional_special_tokens"
WORDS = {"type": "BertPreTokenizer"}


def write_vocabulary(folder, tokenizer):
    """Write vocab.txt and tokenizer_config.json, each under another name first.

    The second has the number of pieces too, so that it shows if the first is cut short.
    """
    check_not_hidden(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "BertTokenizer", "vocab_size": tokenizer.vocabulary_size}
    config |= {theirs: getattr(tokenizer, ours) for ours, theirs in RULES.items()}
    config[MORE] = list(tokenizer.special_tokens[5:])
    write_file(Path(folder, "vocab.txt"), "\n".join(tokenizer.vocabulary))
    write_file(Path(folder, "tokenizer_config.json"), json.dumps(config, indent=2))


def read_vocabulary(folder):
    """The pieces, the rules {name: value}, and further special tokens.

    Raises CheckpointError if vocab.txt is missing, or one of the two torn.
    """
    path = Path(folder, "vocab.txt")
    pieces = read_text(path).removesuffix("\n").split("\n")
    for number, piece in enumerate(pieces, start=1):
        if not piece or piece.split() != [piece]:
            raise CheckpointError(
                f"{path}, line {number} is {piece!r}, and must be one piece: the file is torn; "
                "copy it again"
            )
    config_path = Path(folder, "tokenizer_config.json")
    config = read_json(config_path) if config_path.is_file() else {}
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_path} must hold names and values: copy it again")
    if config.get("vocab_size", len(pieces)) != len(pieces):
        raise CheckpointError(
            f"{path} has {len(pieces)} pieces, and {config_path} says {config['vocab_size']}: one "
            "of them is cut short or another tokenizer's; copy both again"
        )
    rules = {ours: config.get(theirs, DEFAULTS[ours]) for ours, theirs in RULES.items()}
    more = config.get(MORE, [])
    checked_rules(config_path, rules)
    if not isinstance(more, list) or not all(isinstance(name, str) for name in more):
        raise CheckpointError(f"{config_path}: {MORE} must be a list of names: copy it again")
    return pieces, rules, more


def checked_rules(path, rules):
    """The rules; raise unless each is true or false, or null where accents follow case."""
    for name, value in rules.items():
        if not isinstance(value, bool) and not (name == "strip_accents" and value is None):
            raise CheckpointError(
                f"{path}: {name} is {value!r}, and must be true or false: copy it again"
            )
    return rules


def read_wordpiece(path, found):
    """The pieces, the rules {name: value}, and the special tokens of a BERT's tokenizer.json.

    Raises CheckpointError, with the path, for what another kind of tokenizer does.
    """
    normalizer = found.get("normalizer") or {}
    rules = {
        "lower": normalizer.get("lowercase"),
        "strip_accents": normalizer.get("strip_accents"),
        "split_cjk": normalizer.get("handle_chinese_chars"),
    }
    followed = {"type": "BertNormalizer", "clean_text": True, "lowercase": True}
    followed |= {"handle_chinese_chars": True, "strip_accents": None}
    stated = {"type": normalizer.get("type"), "clean_text": normalizer.get("clean_text")}
    if any(stated[name] != followed[name] for name in stated):
        check_part(path, "normalizer", found.get("normalizer"), [followed])
    check_part(path, "pre_tokenizer", found.get("pre_tokenizer"), [WORDS])
    model = found["model"]
    check_options(
        path,
        model,
        unk_token=("[UNK]",),
        continuing_subword_prefix=("##",),
        max_input_chars_per_word=(100,),
    )
    pieces, special = vocabulary_of(path, found)
    return pieces, checked_rules(path, rules), special
