"""GPT-3: the GPT of 2019, larger, with dense and locally banded blocks in turns.

The model is `gpt` with a `band`; here are its eight sizes, as printed, and how they were trained.
Weights were never published, nor which of the blocks are dense, nor how wide the bands are: the
first block is dense here, and a band is BAND.  Nothing here but the sizes can be compared.

Two rows of the table do not fit together: in "XL" 24 heads of 128 are 3072 and not 2048, in "13B"
40 heads of 128 are 5120 and not 5140.  Both are models all the same, for heads may be of any width;
but "XL" has a sixth more parameters so than its name says.  The counts of table D.1, 1,320 and
12,850 million, are those of 16 heads, and of a width of 5120.
"""

from typing import NamedTuple

from reference.errors import InputError
from reference.models.gpt import GPTConfig
from reference.training.config import TrainingConfig

__all__ = []

CONTEXT, VOCABULARY = 2048, 50257  # sec. 2.1 and 2.2: GPT-2's tokenizer
BAND = 256  # that of GPT-Neo, which was made after it; the paper has no number
HORIZON, WARMUP = 260e9, 375e6  # tokens that the rate falls for, and that it rises for


class Published(NamedTuple):
    """A row of table 2.1."""

    parameters: float  # as the text beside the name has it
    layers: int
    width: int  # d_model
    heads: int
    head_width: int  # d_head
    batch: float  # tokens
    learning_rate: float


# Brown et al. 2020, table 2.1.
PUBLISHED = {
    "small": Published(125e6, 12, 768, 12, 64, 0.5e6, 6.0e-4),
    "medium": Published(350e6, 24, 1024, 16, 64, 0.5e6, 3.0e-4),
    "large": Published(760e6, 24, 1536, 16, 96, 0.5e6, 2.5e-4),
    "xl": Published(1.3e9, 24, 2048, 24, 128, 1e6, 2.0e-4),
    "2.7b": Published(2.7e9, 32, 2560, 32, 80, 1e6, 1.6e-4),
    "6.7b": Published(6.7e9, 32, 4096, 32, 128, 2e6, 1.2e-4),
    "13b": Published(13.0e9, 40, 5140, 40, 128, 2e6, 1.0e-4),
    "175b": Published(175.0e9, 96, 12288, 96, 128, 3.2e6, 0.6e-4),
}

SIZES = {
    name: GPTConfig(
        VOCABULARY,
        CONTEXT,
        layers=row.layers,
        heads=row.heads,
        width=row.width,
        head_width=row.head_width,
        band=BAND,
    )
    for name, row in PUBLISHED.items()
}


def training_of(name):
    """The TrainingConfig of a size: Adam with β = 0.9, 0.95 and ε = 1e-8, gradients clipped at 1,
    weight decay 0.1; the rate rises for 375 million tokens, and falls to a tenth as a cosine.

        steps = 260e9 / batch,   warmup = 375e6 / batch,   batch in rows of 2048 tokens

    All are rounded: the paper has batches in tokens, and to one digit.
    Raises InputError for another name.
    Source: Brown et al. 2020, sec. 2.3, table 2.1 and appendix B.
    Differs from the paper: there the batch grows over the first 4 to 12 billion tokens, from 32
    thousand, and training goes on at a tenth of the rate until 300 billion tokens are read, which a
    TrainingConfig cannot say.  Dropout is not mentioned; none here.
    """
    if name not in PUBLISHED:
        raise InputError(f"the size is {name!r}; give one of {', '.join(PUBLISHED)}")
    row = PUBLISHED[name]
    batch = round(row.batch / CONTEXT)
    return TrainingConfig(
        steps=round(HORIZON / (batch * CONTEXT)),
        batch=batch,
        length=CONTEXT,
        schedule="cosine",
        learning_rate=row.learning_rate,
        final_learning_rate=row.learning_rate / 10,
        warmup=round(WARMUP / (batch * CONTEXT)),
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        clip=1.0,
    )
