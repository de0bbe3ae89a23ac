"""python -m reference train | evaluate | generate: a GPT in NumPy, from a text to texts."""

import sys

from reference.commands import Engine, main
from reference.inference import generate
from reference.training import evaluate, fit

ENGINE = Engine("reference", fit, evaluate, generate)

if __name__ == "__main__":
    sys.exit(main(ENGINE))
