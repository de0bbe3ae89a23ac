"""python -m reference train | generate: a GPT in NumPy, from a text to what it writes."""

import sys

from reference.commands import Engine, main
from reference.inference.decoding import generate
from reference.training.loop import train

ENGINE = Engine("reference", train, generate)

if __name__ == "__main__":
    sys.exit(main(ENGINE))
