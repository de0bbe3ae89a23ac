"""How a trained model is used, compiled.

from accelerated.inference import generate
"""

from accelerated.inference.decoding import generate

__all__ = ["generate"]
