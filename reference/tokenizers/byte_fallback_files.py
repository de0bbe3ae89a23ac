"""Llama 2's tokenizer in files: Hugging Face's `tokenizer.json`, SentencePiece's `tokenizer.model`.

In the first, a normalizer or a pre_tokenizer shows blanks as "▁" and puts one before the text. The
second is a binary file, which the library sentencepiece reads. It has scores in place of merges:
joined is the pair that makes the piece with the highest score, so the merges are every way to make
a piece of two others, by falling score.

Source: Kudo & Richardson 2018, released code; Hugging Face tokenizers, released code.
"""

from reference.errors import CheckpointError, InputError
from reference.tokenizers.tokenizer_json import (
    ABSENT,
    check_options,
    check_part,
    essential,
    ids_of_pairs,
    pairs_of,
    vocabulary_of,
    write_tokenizer_json,
)

BLANK = "▁"
BYTE_NAMES = tuple(f"<0x{byte:02X}>" for byte in range(256))

SHOWN = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, SHOWN]}
METASPACE = {"type": "Metaspace", "replacement": BLANK, "split": False}
# How each way to put a blank before is written: normalizer and pre_tokenizer.
PREFIXES = {
    "prepend": (PREPEND, None),
    "always": (None, METASPACE | {"prepend_scheme": "always"}),
    "first": (None, METASPACE | {"prepend_scheme": "first"}),
    "never": (SHOWN, None),
}
PROBE = "a  ﬁ ① e\u0301 é "  # what normalization would change
NEVER = (None, METASPACE | {"prepend_scheme": "never"})  # another way to write it


def read_byte_fallback(path, found):
    """Names by id, merges, special tokens and prefix of a tokenizer.json.

    Raises CheckpointError, with the path, for what another kind of tokenizer does.
    """
    model = found["model"]
    check_options(
        path,
        model,
        dropout=ABSENT,
        continuing_subword_prefix=ABSENT,
        end_of_word_suffix=ABSENT,
        byte_fallback=(True,),
        ignore_merges=ABSENT,
    )
    prefix = prefix_in(path, found)
    names, special = vocabulary_of(path, found)
    ids = {name: i for i, name in enumerate(names)}
    merges = ids_of_pairs(path, pairs_of(path, model), ids)
    return names, [merge[:2] for merge in merges], special, prefix


def prefix_in(path, found):
    """Where a blank is put before, as normalizer and pre_tokenizer say it."""
    parts = as_parts((found.get("normalizer"), found.get("pre_tokenizer")))
    cut = parts["pre_tokenizer"]
    if isinstance(cut, dict) and "prepend_scheme" in cut:  # older files say it twice
        parts["pre_tokenizer"] = {k: v for k, v in cut.items() if k != "add_prefix_space"}
    for prefix, form in (*PREFIXES.items(), ("never", NEVER)):
        if essential(parts) == essential(as_parts(form)):
            return prefix
    known = [as_parts(form) for form in PREFIXES.values()]
    return check_part(path, "normalizer and pre_tokenizer", parts, known)


def as_parts(form):
    """A normalizer and a pre_tokenizer by their names."""
    return dict(zip(("normalizer", "pre_tokenizer"), form, strict=True))


def write_byte_fallback(folder, tokenizer):
    """Write tokenizer.json, which `tokenizers` and `read_byte_fallback` read."""
    names = tokenizer.vocabulary
    model = {
        "type": "BPE",
        "unk_token": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {name: i for i, name in enumerate(names)},
        "merges": [[names[left], names[right]] for left, right in tokenizer.merges],
    }
    shown_again = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
    decoders = [shown_again, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if tokenizer.prefix != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    write_tokenizer_json(
        folder,
        model,
        tokenizer.special_ids,
        **as_parts(PREFIXES[tokenizer.prefix]),
        decoder={"type": "Sequence", "decoders": decoders},
    )


def read_sentencepiece(path):
    """Names by id, merges, special tokens and prefix of a SentencePiece file.

    Raises InputError where the library sentencepiece is missing, CheckpointError for a file that it
    cannot read, or whose tokenizer is another: it must join pairs, fall back to bytes, and leave
    the text as it is.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise InputError(
            f"{path} is a SentencePiece file, which the library of that name reads: install it "
            "(pip install sentencepiece), or give a folder with a tokenizer.json"
        ) from None
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no SentencePiece file ({error}): copy it again") from None
    names = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    special = [name for i, name in enumerate(names) if model.is_control(i) or model.is_unknown(i)]
    bytes_too = {name for i, name in enumerate(names) if model.is_byte(i)}
    pieces = {n: i for i, n in enumerate(names) if n not in bytes_too and n not in special}
    scores = [model.get_score(i) for i in pieces.values()]
    ranked = scores == sorted(scores, reverse=True) and all(score % 1 == 0 for score in scores)
    kept = model.decode(model.encode(PROBE)) == PROBE
    if not ranked or len(bytes_too) < 256 or not kept:
        raise CheckpointError(
            f"{path} is no BPE with bytes that leaves the text as it is, as Llama's does: encode "
            "with the library sentencepiece instead"
        )
    return names, merges_by_score(pieces, model.get_score), special, prefix_of(model)


def merges_by_score(pieces, score):
    """Every way to make a piece of two others, the pieces by falling score.

    pieces {name: id}.  score: of an id -> list of (id, id).
    """
    merges = []
    for name in sorted(pieces, key=lambda name: -score(pieces[name])):
        halves = [(name[:i], name[i:]) for i in range(1, len(name))]
        known = [(pieces[a], pieces[b]) for a, b in halves if a in pieces and b in pieces]
        merges += sorted(known)
    return merges


def prefix_of(model):
    """Whether a SentencePiece model puts a blank before the text."""
    return "prepend" if "".join(model.encode("a", out_type=str)).startswith(BLANK) else "never"
