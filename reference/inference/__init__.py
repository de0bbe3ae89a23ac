"""How a trained model is used.

from reference.inference import generate
"""

from reference.inference.decoding import generate

__all__ = ["generate"]
