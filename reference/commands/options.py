"""What `train` can be told, the same for both engines.

What describes a run has no default here, so that a run that is resumed keeps its own.
"""

from reference.data.cleaning import FORMS
from reference.data.source import ENDINGS, TOKENIZERS
from reference.models import gpt, gpt1, gpt3, llama
from reference.training.config import SCHEDULES

SIZES = gpt.PRESETS | gpt1.PRESETS | {f"gpt3_{name}": size for name, size in gpt3.SIZES.items()}
SIZES |= llama.PRESETS
SMALL = "nano, micro, mini, llama_micro"  # of them, those for a processor


def train_options(parser):
    """Add all of them to a parser."""
    add = parser.add_argument
    add("--out", metavar="FOLDER", default="runs/gpt", help="the run's folder (runs/gpt)")
    add("--resume", action="store_true", help="go on from the folder's latest checkpoint")
    add(
        "--checkpoint-interval",
        type=int,
        default=100,
        metavar="N",
        help="steps from one checkpoint to the next (100)",
    )
    add("--keep", type=int, default=1, metavar="N", help="checkpoints kept beside the best (1)")
    add("--quiet", action="store_true", help="show no progress")
    data_options(parser.add_argument_group("what it learns from"))
    model_options(parser.add_argument_group("the model").add_argument)
    step_options(parser.add_argument_group("how it learns").add_argument)
    evaluation_options(parser.add_argument_group("how it is watched").add_argument)


def data_options(group):
    add = group.add_argument
    add(
        "--data",
        metavar="FILE",
        help=f"one text or, in {', '.join(ENDINGS)}, documents; also with .gz after it (the "
        "documentation that Python carries)",
    )
    apart = group.add_mutually_exclusive_group()
    apart.add_argument("--validation", metavar="FILE", help="to validate on (a share of --data)")
    apart.add_argument(
        "--validation-share",
        type=float,
        metavar="SHARE",
        help="of --data to validate on, 0 for none (0.1)",
    )
    add("--text-column", metavar="NAME", help='the column of documents with the text ("text")')
    add("--encoding", metavar="NAME", help="of the files, such as latin-1 (utf-8)")
    add(
        "--skip-wrong-rows",
        action="store_const",
        const=True,
        help="leave out and count rows that cannot be read (stop at the first)",
    )
    cleaning_options(add)
    add(
        "--tokenizer",
        metavar="KIND",
        help=f"{' or '.join(TOKENIZERS)}, made for the text, or the folder of a saved one (bpe)",
    )
    add("--vocabulary", type=int, metavar="N", help="tokens of a bpe made for it (at most 1024)")


def cleaning_options(add):
    add(
        "--normalization",
        choices=FORMS,
        metavar="FORM",
        help=f"of Unicode: {', '.join(FORMS)} (the text as it is)",
    )
    add("--shortest", type=int, metavar="N", help="fewest characters of a document (0)")
    add("--longest", type=int, metavar="N", help="most characters of a document (any)")
    add(
        "--duplicates",
        choices=["exact", "near"],
        metavar="KIND",
        help="of documents to leave out: exact, or near ones too (none)",
    )
    add("--similarity", type=float, metavar="SHARE", help="from which on two are near (0.8)")


def model_options(add):
    add(
        "--weights",
        metavar="DIRECTORY",
        help="published weights to go on from, with their sizes and tokenizer; learning rates "
        "are then 3e-5 and 3e-6 (initial weights)",
    )
    others = ", ".join(name for name in SIZES if name not in SMALL)
    add(
        "--size",
        choices=SIZES,
        metavar="SIZE",
        help=f"{SMALL}, or one that was published: {others} (nano)",
    )
    for name, what in (
        ("layers", "blocks, one after another"),
        ("heads", "of attention, in each block"),
        ("width", "numbers for each token"),
        ("context", "tokens that it can look back on"),
    ):
        add(f"--{name}", type=int, metavar="N", help=f"{what} (the size's)")
    add("--dropout", type=float, metavar="RATE", help="share of activations dropped (the size's)")
    add(
        "--initialization",
        choices=gpt.INITIALIZATIONS,
        metavar="NAME",
        help=f"{', '.join(gpt.INITIALIZATIONS)}: the last suits small widths (paper)",
    )


def step_options(add):
    add("--steps", type=int, metavar="N", help="length of the run (300)")
    add("--batch", type=int, metavar="N", help="sequences in a step (12)")
    add("--length", type=int, metavar="N", help="tokens in a sequence (the context, at most 1024)")
    add("--accumulation", type=int, metavar="N", help="parts that a batch is computed in (1)")
    add(
        "--recompute",
        action="store_const",
        const=True,
        help="compute blocks again in the backward, to save memory (keep what they computed)",
    )
    add("--schedule", choices=SCHEDULES, metavar="NAME", help=f"{', '.join(SCHEDULES)} (cosine)")
    add("--learning-rate", type=float, metavar="RATE", help="at its peak (1e-3)")
    add("--final-learning-rate", type=float, metavar="RATE", help="at the end (1e-4)")
    add("--warmup", type=int, metavar="N", help="steps up to the peak (a tenth, at most 100)")
    add("--decay", type=int, metavar="N", help="last steps of warmup_stable_decay (a fifth)")
    add("--weight-decay", type=float, metavar="RATE", help="of kernels and embeddings (0.1)")
    add("--beta1", type=float, metavar="B", help="AdamW's decay of the mean gradient (0.9)")
    add("--beta2", type=float, metavar="B", help="and of its square (0.95)")
    add("--clip", type=float, metavar="NORM", help="longest gradient (1)")
    add("--average", type=float, metavar="DECAY", help="average the weights, as by 0.999 (do not)")
    types = ["float32", "float64"]
    add(
        "--dtype",
        choices=types,
        metavar="DTYPE",
        help=f"{types[0]} or {types[1]}, of the weights (float32)",
    )
    add("--seed", type=int, metavar="N", help="decides all that is random (0)")


def evaluation_options(add):
    add("--evaluation-interval", type=int, metavar="N", help="steps between evaluations (250)")
    add("--evaluation-batches", type=int, metavar="N", help="of the validation text, each (200)")
    add("--patience", type=int, metavar="N", help="evaluations without a new best (no end)")
