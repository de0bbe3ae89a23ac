"""Byte-level BPE on tiktoken, OpenAI's compiled encoder."""

from dataclasses import fields
from functools import cached_property

import regex
import tiktoken

from reference.tokenizers import bpe as reference

# To match `\s+(?!\S)`, tiktoken remembers every blank that it may have to give back, and a million
# in a row end in a Rust panic. A run as long as this is a word by itself, so it may go alone.
LONG_BLANK = regex.compile(r"((?<!\s)\s{10000,}(?!\S))")


class BPE(reference.BPE):
    """The reference's tokenizer, encoding in Rust; `BPE.of(tokenizer)`.

    Equals `reference.tokenizers.BPE` wherever the libraries `regex` and tiktoken put a character in
    the same of the classes letter, number, blank and other. They follow different versions of
    Unicode: regex 2026.11 and tiktoken 0.14 disagree on 17,480 code points, nearly all of them
    beyond U+FFFF. Training, files, errors and decoding are the reference's own; so is encoding with
    another pattern or vocabulary than GPT-2's form has, which tiktoken may read otherwise.
    """

    @classmethod
    def of(cls, tokenizer):
        """The twin of a reference's tokenizer."""
        made = {f.name: getattr(tokenizer, f.name) for f in fields(tokenizer) if f.init}
        return cls(**made)

    @cached_property
    def _encoding(self):
        ordinary = self.tokens[: self.vocabulary_size - len(self.special_tokens)]
        return tiktoken.Encoding(
            "bpe",
            # Blanks at the end give nothing back, so `++` may say so (see LONG_BLANK).
            pat_str=reference.PATTERN.pattern.replace(r"|\s+(?!\S)", r"|\s++$|\s+(?!\S)"),
            mergeable_ranks={token: i for i, token in enumerate(ordinary)},
            special_tokens=self.special_ids,
        )

    def _encode_ordinary(self, text):
        if (self.pattern, self.vocabulary) != (reference.PATTERN.pattern, None):
            return super()._encode_ordinary(text)
        ids = []
        for piece in LONG_BLANK.split(text):
            ids += self._encoding.encode_ordinary(piece)
        return ids
