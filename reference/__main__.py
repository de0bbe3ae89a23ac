"""python -m reference train | evaluate | generate | export: in NumPy, from a text to texts."""

import sys

from reference.commands import Engine, main
from reference.inference import beam_generate, generate, speculate
from reference.training import evaluate, fit

ENGINE = Engine("reference", fit, evaluate, generate, beam_generate, speculate)

if __name__ == "__main__":
    sys.exit(main(ENGINE))
