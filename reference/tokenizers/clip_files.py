"""CLIP's tokenizer in files: OpenAI's list of merges, and Hugging Face's `tokenizer.json`.

bpe_simple_vocab_16e6.txt   a line for each merge, five times as many as CLIP uses; often gzipped
tokenizer.json              all of it in one, as Hugging Face writes it

Its `vocab.json` and `merges.txt` are GPT-2's form, and `vocabulary_files` reads them.

Source: Radford et al. 2021, released code (simple_tokenizer.py); Hugging Face tokenizers.
"""

import gzip

from reference.errors import CheckpointError
from reference.tokenizers.tokenizer_json import (
    ABSENT,
    check_options,
    check_part,
    ids_of_pairs,
    pairs_of,
    vocabulary_of,
)
from reference.tokenizers.vocabulary_files import SYMBOLS, parse_merges

WORD_END = "</w>"
NAMES = (*SYMBOLS, *(symbol + WORD_END for symbol in SYMBOLS))
RELEASED = ("bpe_simple_vocab_16e6.txt", "bpe_simple_vocab_16e6.txt.gz")
RELEASED_MERGES = 49_152 - 256 - 2  # of the 262,144 in that file

BLANK = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
NORMALIZER = {"type": "Sequence", "normalizers": [{"type": "NFC"}, BLANK, {"type": "Lowercase"}]}
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # PATTERN, as others write it
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
CUTS = [
    {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Removed", "invert": True},
            shows,
        ],
    }
    for cut in (WORDS, r"<\|startoftext\|>|<\|endoftext\|>|" + WORDS)
    for shows in (BYTE_LEVEL, BYTE_LEVEL | {"use_regex": True})
]


def read_released(path):
    """The merges of OpenAI's file, the first 48,894 of those it has.

    Raises CheckpointError if there are fewer, or the file is torn.
    """
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is torn ({error}): copy it again, as binary") from None
    lines = text.split("\n")[: RELEASED_MERGES + 1]
    merges, _ = parse_merges(path, "\n".join(lines), NAMES)
    if len(merges) < RELEASED_MERGES:
        raise CheckpointError(
            f"{path} has {len(merges)} merges, and must have {RELEASED_MERGES}: it is cut short; "
            "copy it again"
        )
    return merges


def read_json_form(path, found):
    """The merges and special tokens of a CLIP's tokenizer.json.

    Raises CheckpointError, with the path, for what another kind of tokenizer does.
    """
    model, ends = found["model"], (WORD_END,)
    check_options(path, model, dropout=ABSENT, end_of_word_suffix=ends, byte_fallback=ABSENT)
    check_part(path, "normalizer", found.get("normalizer"), [NORMALIZER])
    check_part(path, "pre_tokenizer", found.get("pre_tokenizer"), CUTS)
    names, special = vocabulary_of(path, found)
    ids = {name: i for i, name in enumerate(names)}
    merges = ids_of_pairs(path, pairs_of(path, model), ids)
    numbered = [made for _, _, made in merges] == list(range(512, 512 + len(merges)))
    if tuple(names[:512]) != NAMES or names[512 + len(merges) :] != special or not numbered:
        raise CheckpointError(
            f"{path}: the ids must be numbered as CLIP's, the 256 bytes, the same at the end of a "
            "word, merges, special tokens: encode with the library tokenizers instead"
        )
    return [merge[:2] for merge in merges], special
