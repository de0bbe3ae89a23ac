"""Write a run's model as a directory that Hugging Face's `transformers` loads."""

from reference.commands import model
from reference.commands.train import command
from reference.pretrained import save
from reference.pretrained.files import DTYPES


def add_options(parser):
    add = parser.add_argument
    add("--checkpoint", metavar="FOLDER", default=model.RUN, help=f"a run's folder ({model.RUN})")
    add("--out", metavar="DIRECTORY", required=True, help="where to write; it must have no model")
    add(
        "--dtype",
        choices=DTYPES,
        default="float32",
        metavar="DTYPE",
        help=f"{', '.join(DTYPES)}, of the numbers in the file (float32)",
    )


def run(engine, options):
    """Write the best checkpoint of a run, or its latest: config.json, weights and tokenizer."""
    found = model.trained(options.checkpoint)
    save(options.out, found.config, found.params, dtype=options.dtype, tokenizer=found.tokenizer)
    print(f"saved {options.out}")
    following = command(engine, "generate", "--weights", options.out)
    return 0, f"to see what it writes:\n    {following}"
