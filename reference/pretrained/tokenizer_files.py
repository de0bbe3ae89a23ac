"""A tokenizer's files beside a published model, in the form that `transformers` reads.

tokenizer_config.json says which of its classes reads the rest, whatever the model is;  Hugging Face
has none for characters, of which only `load_tokenizer` makes a tokenizer again.
"""

import json

from reference.errors import InputError
from reference.tokenizers import BPE, CLIP, ByteFallback, Unigram, files_in
from reference.tokenizers.byte_level_json import write_byte_level
from reference.tokenizers.characters import FILE as CHARACTERS
from reference.tokenizers.vocabulary_files import write_file

RULES = "tokenizer_config.json"
AS_JSON = "PreTrainedTokenizerFast"  # does what tokenizer.json says
CLASSES = {BPE: AS_JSON, ByteFallback: AS_JSON, Unigram: AS_JSON, CLIP: "CLIPTokenizer"}
ROLES = {  # the names of special tokens in published vocabularies
    "bos_token": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
    "unk_token": ("<unk>",),
}


def write_tokenizer(directory, tokenizer):
    """Write a tokenizer's files, which `load_tokenizer` reads, too."""
    if isinstance(tokenizer, BPE):
        write_byte_level(directory, tokenizer)
    else:
        tokenizer.save(directory)
    if kind := CLASSES.get(type(tokenizer)):
        names = tokenizer.special_ids
        roles = {role: [n for n in known if n in names] for role, known in ROLES.items()}
        special = {role: found[0] for role, found in roles.items() if found}
        write_file(directory / RULES, json.dumps({"tokenizer_class": kind} | special, indent=2))


def check_no_tokenizer(directory):
    """Raise InputError where a directory has a tokenizer, which would be lost."""
    others = [name for name in (CHARACTERS, RULES) if (directory / name).exists()]
    if there := files_in(directory) + others:
        raise InputError(f"{directory} has a tokenizer, {there[0]}; give another directory")
