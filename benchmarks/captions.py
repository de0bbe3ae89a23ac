"""A CLIP learns what MNIST's digits are called, from captions, and then tells them by their names.

An image of a three and "a handwritten three" are a pair, and so on.  There is no head with ten
classes: test images are told apart by the names of the ten digits, in sentences of forms that no
caption had.  But every name was in some caption, so it is the method that is shown here, and not,
as in the paper, that it finds what it was never shown.  With ten names, a batch has many pairs that
would do as well as the right one, so the loss stays near the logarithm of how many have one name.
Source: Radford et al. 2021, "Learning transferable visual models from natural language
supervision", sec. 3.1; of the data: LeCun, Cortes and Burges, the MNIST database.
Differs from the paper: the scale of the scores is limited in the loss (`largest_scale`), where the
paper clips it after each step, for which `fit` has no place.
"""

from dataclasses import asdict, replace
from functools import partial

import numpy as np

import accelerated.layers.normalization
from accelerated import functional
from accelerated.models.clip import Clip
from benchmarks.digits import read
from benchmarks.learning import (
    Report,
    agreement,
    in_batches,
    picture,
    shortened,
    told_apart,
)
from benchmarks.report import GREY
from reference import random
from reference.errors import InputError
from reference.layers.normalization import l2_norm
from reference.models import parameter_count
from reference.models.clip import (
    ClipConfig,
    ClipImageConfig,
    ClipTextConfig,
    class_features,
    clip_image,
)
from reference.tokenizers import CLIP
from reference.tokenizers.clip import END
from reference.training import TrainingConfig

TARGET = 0.9  # of the test images
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ("a handwritten {}", "the digit {}", "a photo of the number {}", "this is a {}", "{}!")
PROMPTS = ("a photo of a handwritten {}", "this is the digit {}", "a {}")  # no caption is such
TOKENIZER = CLIP(())  # letter by letter: so few words need no vocabulary
CONTEXT = 40
CONFIG = ClipConfig(
    ClipTextConfig(
        TOKENIZER.vocabulary_size,
        CONTEXT,
        layers=2,
        heads=4,
        width=64,
        hidden=256,
        end=TOKENIZER.special_ids[END],
    ),
    ClipImageConfig(28, 7, layers=3, heads=4, width=64, hidden=256, channels=1),
    projection=32,
    largest_scale=100.0,
)
TRAINING = TrainingConfig(
    steps=1500,
    batch=128,
    length=1,  # images a row, as the speed is told
    learning_rate=2e-3,
    final_learning_rate=1e-5,
    warmup=100,
    weight_decay=0.05,
    beta2=0.98,
)
HELD_OUT = 5000  # the last of the training images, to look at while it learns
AT_ONCE = 500


def run(
    data,
    out,
    *,
    engine="accelerated",
    steps=None,
    seed=0,
    command=None,
    begun=None,
    config=CONFIG,
    training=TRAINING,
    held_out=HELD_OUT,
):
    """Train, tell the test set's digits by their names, and leave figures and a picture in `out`.

    data: the folder of MNIST's four files.  Raises InputError for what cannot be used.
    """
    report = Report.begin(out, command=command, begun=begun)
    training = replace(training, seed=seed, **shortened(training, steps))
    images, labels = read(data, "train")
    unseen, truth = read(data, "t10k")
    check_named(labels, truth)
    pairs = {"images": images, "tokens": captions(labels, key=random.key(seed))}
    looks = {"labels": labels, "held_out": held_out}  # at which labels serve; it learns from none
    looks |= {"scores": cosines_of(engine, config), "unseen": unseen}
    of_run, accuracies, found = told_apart(report, engine, config, training, pairs, **looks)
    figures = {
        "header": report.header,
        "engine": engine,
        "model": asdict(config) | {"parameters": parameter_count(config)},
        "training": asdict(training),
        "captions": CAPTIONS,
        "prompts": PROMPTS,
        "images": {"training": len(images) - held_out, "held out": held_out, "test": len(truth)},
        "zero_shot_accuracy": agreement(found, truth),
        "target": {"zero_shot_accuracy": TARGET},
        "confusion": confusion(found, truth).tolist(),
        "held_out_accuracy": accuracies,
    }
    draw(report, figures, unseen, found, truth)
    report.finish("captions", figures, of_run)
    report_on(report, figures)
    return figures


def report_on(report, figures):
    """What was reached, as a table."""
    training, images = figures["training"], figures["images"]
    report.table(
        "A CLIP on MNIST, told the names of digits",
        {"test accuracy, zero-shot": f"{figures['zero_shot_accuracy']:.2%}"},
        {"test accuracy, zero-shot": f"above {TARGET:.0%}"},
        {
            "weights": figures["model"]["parameters"],
            "images to learn from": images["training"],
            "images tested on": images["test"],
            "steps": f"{training['steps']:,} of {training['batch']} pairs",
        },
        figures["seconds"],
    )


def check_named(*labels):
    """Raise InputError for a digit that has no name."""
    largest = max(int(each.max()) for each in labels)
    if largest >= len(NAMES):
        raise InputError(f"a label is {largest}; give digits, from 0 to {len(NAMES) - 1}")


def captions(labels, *, key):
    """A caption for each label, of a form drawn by the key, as tokens (N, T)."""
    forms = random.randint(key, labels.shape, 0, len(CAPTIONS))
    return sentences(CAPTIONS)[labels, forms]


def sentences(forms):
    """The name of each digit in sentences of these forms, as tokens (V, forms, T)."""
    return np.stack(
        [TOKENIZER.encode_padded([form.format(name) for form in forms], CONTEXT) for name in NAMES]
    )


def cosines_of(engine, config):
    """An engine's function of a CLIP's parameters and images (N, …) -> how near each is to what
    the prompts say of each name, (N, V): `zero_shot` takes the nearest.
    """
    prompts = sentences(PROMPTS)
    twin, _ = functional(Clip.abstract(config), cosines_by_twin)
    apply = twin if engine == "accelerated" else partial(cosines_by_reference, config=config)

    def cosines(params, images):
        return apply(params, images=images, prompts=prompts)

    return in_batches(cosines, engine, batch=AT_ONCE)


def cosines_by_reference(params, *, images, prompts, config):
    features, _ = clip_image(params["vision"], images=images, config=config)
    classes = class_features(params["text"], prompts=prompts, config=config)
    return l2_norm(features)[0] @ classes.T


def cosines_by_twin(model, *, images, prompts):
    units = accelerated.layers.normalization.l2_norm(model.vision(images=images))
    return units @ model.class_features(prompts=prompts).T


def confusion(cosines, labels):
    """How often each digit was taken for each: (V, V), rows are what they are."""
    counts = np.zeros((len(NAMES),) * 2, int)
    np.add.at(counts, (labels, cosines.argmax(axis=1)), 1)
    return counts


def draw(report, figures, images, cosines, labels):
    """How near an image of each digit is to each name, and what was taken for what."""
    path = report.out / "captions.png"
    with picture(path, (14, 7), about=report.header["device"]) as figure:
        left, right = figure.subplots(1, 2)
        known, first = np.unique(labels, return_index=True)
        near = cosines[first]
        left.imshow(near, cmap="RdBu_r", vmin=-1, vmax=1)
        written(left, [[f"{c:.2f}" for c in row] for row in near], np.abs(near) > 0.6)
        for row, i in enumerate(first):
            thumbnail = left.inset_axes((-1.55, row - 0.5, 1, 1), transform=left.transData)
            thumbnail.imshow(images[i, ..., 0], cmap="gray_r")
            thumbnail.axis("off")
        left.set_yticks([])
        left.set_title("Cosines of the test set's first images and the ten names")
        counts = np.array(figures["confusion"])[known]
        shares = counts / counts.sum(axis=1, keepdims=True)
        right.imshow(shares, cmap="Blues", norm="asinh")
        written(right, counts, shares > 0.1)
        right.set_yticks(range(len(known)), [NAMES[digit] for digit in known])
        right.set_title("What each digit of the test set (row) was taken for")
        for axes in (left, right):
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            axes.set_xticks(range(len(NAMES)), NAMES, rotation=45)
        reached = figures["zero_shot_accuracy"]
        figure.suptitle(
            f"A CLIP that learnt from captions names {reached:.2%} of MNIST's test digits",
            fontweight="bold",
        )


def written(axes, texts, dark):
    """Write each cell's text into it, in white where it is dark."""
    for row, column in np.ndindex(dark.shape):
        if (text := str(texts[row][column])) != "0":
            color = "white" if dark[row, column] else GREY
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=10)
