"""How a trained model is used.

from reference.inference import beam_generate, generate, speculate, translate
"""

from reference.inference.beam import beam_generate, translate
from reference.inference.decoding import generate
from reference.inference.speculative import speculate

__all__ = ["beam_generate", "generate", "speculate", "translate"]
