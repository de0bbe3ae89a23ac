"""How a trained model is used, compiled.

from accelerated.inference import beam_generate, generate, speculate, translate
"""

from accelerated.inference.beam import beam_generate, translate
from accelerated.inference.decoding import generate
from accelerated.inference.speculative import speculate

__all__ = ["beam_generate", "generate", "speculate", "translate"]
