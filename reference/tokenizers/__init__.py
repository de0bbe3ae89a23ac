"""From text to token ids and back.

bpe         byte-level byte-pair encoding: GPT-2's, and everything that descends from it
characters  one id for each character that a text has
"""

from pathlib import Path

from reference.errors import CheckpointError
from reference.tokenizers.bpe import BPE
from reference.tokenizers.characters import Characters

__all__ = ["BPE", "Characters", "load_tokenizer"]

FILES = {
    BPE: ("merges.txt", "vocab.json", "vocab.bpe", "encoder.json"),
    Characters: ("characters.json",),
}


def load_tokenizer(folder):
    """The tokenizer that was saved into a folder, of whichever kind it is.

    Raises CheckpointError if there is none or more than one, or if its files are torn.
    """
    found = {kind: [n for n in names if Path(folder, n).is_file()] for kind, names in FILES.items()}
    kinds = [kind for kind, names in found.items() if names]
    if not kinds:
        raise CheckpointError(
            f"{folder} has no tokenizer, neither merges.txt and vocab.json nor characters.json: "
            "give the folder of a saved one"
        )
    if len(kinds) > 1:
        raise CheckpointError(
            f"{folder} has files of two tokenizers, {' and '.join(sum(found.values(), []))}: "
            "remove those of the one that is not meant"
        )
    return kinds[0].load(folder)
