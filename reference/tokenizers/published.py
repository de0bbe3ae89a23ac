"""Tokenizers that others published, read from a folder into one of ours.

A folder says by its files, and `tokenizer.json` by its content, whose tokenizer it holds:

    tokenizer.json             WordPiece, byte-level BPE (GPT-2, Llama 3), CLIP's BPE, BPE with byte
                               fallback (Llama 1 and 2), or Unigram
    vocab.txt                  BERT's WordPiece
    merges.txt, vocab.json     GPT-2's BPE, or CLIP's where words end in </w>
    vocab.bpe, encoder.json    GPT-2's, as OpenAI released it
    bpe_simple_vocab_16e6.txt  CLIP's, as OpenAI released it, or gzipped
    tokenizer.model            SentencePiece's of Llama 1 and 2, read by the library of that name

Where several are there, as in most folders of Hugging Face, the first of these is read.
"""

from pathlib import Path

from reference.errors import CheckpointError
from reference.tokenizers.bpe import BPE
from reference.tokenizers.byte_fallback import ByteFallback
from reference.tokenizers.byte_level_json import is_byte_level
from reference.tokenizers.clip import CLIP
from reference.tokenizers.clip_files import RELEASED, WORD_END
from reference.tokenizers.tokenizer_json import FILE, read_tokenizer_json
from reference.tokenizers.unigram import Unigram
from reference.tokenizers.vocabulary_files import read_text
from reference.tokenizers.wordpiece import WordPiece

GPT2_FILES = ("merges.txt", "vocab.json", "vocab.bpe", "encoder.json")
MODEL, MARIAN = "tokenizer.model", "source.spm"
FILES = (FILE, "vocab.txt", *GPT2_FILES, *RELEASED, MODEL)


def files_in(folder):
    """The names of a tokenizer's files that a folder has."""
    return [name for name in FILES if Path(folder, name).is_file()]


def load_published(folder):
    """The tokenizer that a folder's files describe, of whichever kind.

    Its `encode` gives the ids of the text alone: <s> or [CLS] before it is the caller's to add.
    Raises CheckpointError if there is none, if its files are torn, or if it does what none of ours
    does; the message names that.
    """
    found = files_in(folder)
    if Path(folder, MARIAN).is_file() and FILE not in found:
        raise CheckpointError(
            f"{folder} has {MARIAN}, one of two files of Marian's tokenizer, which none of these "
            "does: encode with the library transformers instead"
        )
    if not found:
        raise CheckpointError(
            f"{folder} has no tokenizer, none of {', '.join(FILES)}: give the folder of a saved one"
        )
    if found[0] == FILE:
        path, described = read_tokenizer_json(folder)
        return kind_of(path, described).from_json(path, described)
    if found[0] == MODEL:
        return ByteFallback.from_sentencepiece(Path(folder, MODEL))
    if found[0] in RELEASED or has_word_ends(folder):
        return CLIP.load(folder)
    return (BPE if found[0] in GPT2_FILES else WordPiece).load(folder)


def has_word_ends(folder):
    """Whether a folder's merges.txt is CLIP's, whose words end in </w>."""
    path = Path(folder, GPT2_FILES[0])
    return path.is_file() and f"{WORD_END}\n" in read_text(path)


def kind_of(path, described):
    """The class that reads a tokenizer.json, by its model and how it shows bytes."""
    model = described["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else None)  # old files do not say
    if kind in ("WordPiece", "Unigram"):
        return WordPiece if kind == "WordPiece" else Unigram
    if kind == "BPE" and model.get("byte_fallback"):
        return ByteFallback
    if kind == "BPE" and is_byte_level(described):
        return CLIP if model.get("end_of_word_suffix") else BPE
    raise CheckpointError(
        f"{path} has a model of type {kind!r}, which none of these tokenizers does: encode with "
        "the library tokenizers instead"
    )
