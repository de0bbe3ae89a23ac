"""From text to token ids and back.

bpe            byte-level byte-pair encoding: GPT-2's, and everything that descends from it
characters     one id for each character that a text has
wordpiece      words in the longest pieces that fit: BERT's
clip           byte-pair encoding with ends of words: CLIP's
byte_fallback  byte-pair encoding of characters, with bytes for the rare ones: Llama 1 and 2
unigram        the most probable of all ways to cut a word: SentencePiece's
ranks          published BPE vocabularies in tiktoken's form: cl100k_base
offsets        where in its text each token of any of them stands
published      any of them from the files that others published
"""

from pathlib import Path

from reference.errors import CheckpointError
from reference.tokenizers.bpe import BPE
from reference.tokenizers.byte_fallback import ByteFallback
from reference.tokenizers.characters import Characters
from reference.tokenizers.clip import CLIP
from reference.tokenizers.published import files_in, load_published
from reference.tokenizers.ranks import cl100k_base
from reference.tokenizers.unigram import Unigram
from reference.tokenizers.wordpiece import WordPiece

__all__ = [
    "BPE",
    "CLIP",
    "ByteFallback",
    "Characters",
    "Unigram",
    "WordPiece",
    "cl100k_base",
    "load_published",
    "load_tokenizer",
]


def load_tokenizer(folder):
    """The tokenizer that was saved into a folder, of whichever kind it is, ours or published.

    Raises CheckpointError if there is none or more than one, or if its files are torn.
    """
    published, characters = files_in(folder), Path(folder, "characters.json").is_file()
    if published and characters:
        raise CheckpointError(
            f"{folder} has files of two tokenizers, {' and '.join(published)} and characters.json: "
            "remove those of the one that is not meant"
        )
    return Characters.load(folder) if characters else load_published(folder)
