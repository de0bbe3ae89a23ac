"""The tokenizers of `reference.tokenizers`, with the same ids, on compiled libraries."""

from accelerated.tokenizers.bpe import BPE

__all__ = ["BPE"]
