"""Hugging Face's `tokenizer.json`: one file for every kind of tokenizer, and what each must say.

    added_tokens    names that are looked for in the text first, and their ids
    normalizer      what is done to the text: lower case, spaces shown as "▁"
    pre_tokenizer   how it is cut into words
    model           BPE, WordPiece or Unigram: the vocabulary, and merges or scores
    decoder         how tokens become text again
    post_processor  the special tokens around a text, for a model's input

Each kind of tokenizer here reads the files whose parts say what it does, and refuses any other by
name: a tokenizer that is nearly the same gives nearly the same ids, and nobody notices.

Source: Hugging Face tokenizers, released code.
"""

import json
from pathlib import Path

from reference.errors import CheckpointError
from reference.tokenizers.vocabulary_files import read_json, write_file

FILE = "tokenizer.json"
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False}  # found wherever it is spelt
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
ABSENT = (None, 0, False, "")  # options that are off


def read_tokenizer_json(folder):
    """The path and the content of a folder's tokenizer.json.

    Raises CheckpointError if it is missing, torn, or not of the form above.
    """
    path = Path(folder, FILE)
    found = read_json(path)
    if not has_form(found):
        raise CheckpointError(
            f"{path} has no model with a vocab and merges, or added_tokens without id and content: "
            "give a tokenizer.json of Hugging Face's tokenizers"
        )
    return path, found


def has_form(found):
    """Whether the parts of a file are made of what they must be made of."""
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        return False
    added, vocabulary = found.get("added_tokens") or [], found["model"].get("vocab")
    return (
        all(isinstance(found.get(part), (dict, type(None))) for part in PARTS)
        and isinstance(vocabulary, (dict, list))
        and (isinstance(vocabulary, list) or all(type(i) is int for i in vocabulary.values()))
        and isinstance(found["model"].get("merges", []), list)
        and isinstance(added, list)
        and all(
            isinstance(one, dict) and type(one.get("id")) is int and type(one.get("content")) is str
            for one in added
        )
    )


def write_tokenizer_json(folder, model, special_ids, **parts):
    """Write a tokenizer.json that `tokenizers` reads; parts that are not given are null."""
    added = [
        {"id": i, "content": name, "special": True, "normalized": False} | PLAIN
        for name, i in special_ids.items()
    ]
    none = dict.fromkeys(("truncation", "padding", *PARTS))
    described = {"version": "1.0", "added_tokens": added, **none, **parts, "model": model}
    path = Path(folder, FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(described, ensure_ascii=False))


def vocabulary_of(path, found):
    """The tokens' names by id, with the added ones, and the added ones' names.

    Raises CheckpointError unless the ids count from 0 with none left out or given twice.
    """
    if not isinstance(found["model"]["vocab"], dict):
        raise CheckpointError(f"{path}: model.vocab must map each token to its id: copy it again")
    ids, added = dict(found["model"]["vocab"]), {}
    for entry in found.get("added_tokens") or []:
        check_part(path, "an added token", {k: entry.get(k, False) for k in PLAIN}, [PLAIN])
        added[entry["content"]] = entry["id"]
    for name, i in added.items():
        if ids.setdefault(name, i) != i:
            raise CheckpointError(
                f"{path}: the added token {name!r} has the id {i}, in the vocabulary {ids[name]}: "
                "copy the file again"
            )
    names = sorted(ids, key=ids.get)
    for i, name in enumerate(names):
        if ids[name] != i:
            raise CheckpointError(
                f"{path}: the token {name!r} has the id {ids[name]}, and must have {i}: ids "
                "count from 0 with none left out; copy the file again"
            )
    return names, sorted(added, key=ids.get)


def pairs_of(path, model):
    """The merges as pairs of names: newer files have lists of two, older ones "a b"."""
    merges = model.get("merges", [])
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for n, pair in enumerate(pairs):
        two = isinstance(pair, list) and len(pair) == 2
        if not two or not all(isinstance(name, str) for name in pair):
            raise CheckpointError(
                f"{path}: model.merges[{n}] is {merges[n]!r}, and must be two tokens: copy the "
                "file again"
            )
    return pairs


def ids_of_pairs(path, pairs, ids):
    """The merges as pairs of ids, (id, id, id of what they become).

    Raises CheckpointError for one that is made of, or makes, no token of the vocabulary.
    """
    merges = []
    for n, (left, right) in enumerate(pairs):
        if missing := [name for name in (left, right, left + right) if name not in ids]:
            raise CheckpointError(
                f"{path}: model.merges[{n}] joins {left!r} and {right!r}, but the vocabulary has "
                f"no {missing[0]!r}: copy the file again"
            )
        merges.append((ids[left], ids[right], ids[left + right]))
    return merges


def check_part(path, name, part, allowed):
    """Raise unless a part of the file is one of these that this kind of tokenizer follows."""
    if essential(part) not in [essential(other) for other in allowed]:
        raise CheckpointError(
            f"{path}: {name} is {json.dumps(part, ensure_ascii=False):.200}, which this reader "
            f"does not follow: it knows {json.dumps(allowed, ensure_ascii=False):.400}; encode "
            "with the library tokenizers instead"
        )


def check_options(path, model, **expected):
    """Raise unless the model's options, where it has them, are these."""
    for name, allowed in expected.items():
        if model.get(name) not in allowed:
            raise CheckpointError(
                f"{path}: model.{name} is {model.get(name)!r}, and must be one of {list(allowed)}: "
                "encode with the library tokenizers instead"
            )


def essential(part):
    """A part without what has no effect on ids, and with a sequence of one as that one."""
    if isinstance(part, list):
        return [essential(one) for one in part]
    if not isinstance(part, dict):
        return part
    if len(steps(part)) == 1 and steps(part)[0] is not part:
        return essential(steps(part)[0])
    return {k: essential(v) for k, v in part.items() if k != "trim_offsets"}


def steps(part):
    """The parts that a part goes through: those of a sequence, itself, or none."""
    if not isinstance(part, dict):
        return []
    for several in ("normalizers", "pretokenizers", "decoders"):
        if isinstance(part.get(several), list):
            return [one if isinstance(one, dict) else {"type": one} for one in part[several]]
    return [part]
