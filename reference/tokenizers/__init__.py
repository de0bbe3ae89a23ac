"""From text to token ids and back.

bpe  byte-level byte-pair encoding: GPT-2's, and everything that descends from it
"""

from reference.tokenizers.bpe import BPE

__all__ = ["BPE"]
