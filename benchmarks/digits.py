"""A Vision Transformer learns to read MNIST's digits; the test set is read once, at the end.

Source of the data: LeCun, Cortes and Burges, the MNIST database.
"""

from dataclasses import asdict, replace

import numpy as np

from accelerated import functional
from accelerated.models.vit import ViT
from benchmarks.learning import (
    OURS,
    THEIRS,
    Report,
    agreement,
    draw_losses,
    found_in,
    in_batches,
    picture,
    shortened,
    told_apart,
)
from benchmarks.report import GREY
from reference.data.images import read_images
from reference.models import parameter_count
from reference.models.vit import ViTConfig, vit
from reference.training import TrainingConfig

TARGET, LIMIT = 0.97, 300  # of all digits; seconds
CONFIG = ViTConfig(28, 7, layers=4, heads=4, width=96, hidden=192, labels=10, channels=1)
TRAINING = TrainingConfig(
    steps=2000,
    batch=128,
    length=1,  # images a row, as the speed is told
    learning_rate=2e-3,
    final_learning_rate=1e-5,
    warmup=150,
    weight_decay=0.05,
    beta2=0.98,
)
HELD_OUT = 5000  # the last of the training images, to look at while it learns
AT_ONCE = 500  # images that are read together


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
    """Train, look at the test set, and leave figures and a picture in the folder `out`.

    data: the folder of MNIST's four files.  Raises InputError for what cannot be used.
    """
    report = Report.begin(out, command=command, begun=begun)
    training = replace(training, seed=seed, **shortened(training, steps))
    images, labels = read(data, "train")
    unseen, truth = read(data, "t10k")
    arrays, looks = {"images": images, "labels": labels}, {"labels": labels, "held_out": held_out}
    looks |= {"scores": scores_of(engine, config), "unseen": unseen}
    of_run, accuracies, found = told_apart(report, engine, config, training, arrays, **looks)
    read_as = found.argmax(axis=1)
    figures = {
        "header": report.header,
        "engine": engine,
        "model": asdict(config) | {"parameters": parameter_count(config)},
        "training": asdict(training),
        "images": {"training": len(images) - held_out, "held out": held_out, "test": len(truth)},
        "test_accuracy": agreement(found, truth),
        "target": {"test_accuracy": TARGET, "seconds": LIMIT},
        "misread": [
            [int(i), int(truth[i]), int(read_as[i])] for i in np.flatnonzero(read_as != truth)
        ],
        "held_out_accuracy": accuracies,
    }
    draw(report, figures, of_run, unseen)
    report.finish("digits", figures, of_run)
    report_on(report, figures)
    return figures


def report_on(report, figures):
    """What was reached, as a table."""
    training, images = figures["training"], figures["images"]
    report.table(
        "A Vision Transformer on MNIST",
        {"test accuracy": f"{figures['test_accuracy']:.2%}"},
        {"test accuracy": f"at least {TARGET:.0%}"},
        {
            "weights": figures["model"]["parameters"],
            "images to learn from": images["training"],
            "images tested on": images["test"],
            "steps": f"{training['steps']:,} of {training['batch']} images",
        },
        figures["seconds"],
        limit=LIMIT,
    )


def read(folder, part):
    """The images (N, 28, 28, 1), from -1 to 1, and the labels of MNIST's training or test set."""
    names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    images, labels = read_images(*(found_in(folder, name) for name in names))
    return (images / np.float32(127.5) - 1)[..., None], labels


def scores_of(engine, config):
    """An engine's function of a ViT's parameters and images (N, …) -> scores (N, V)."""
    if engine == "accelerated":
        apply, _ = functional(ViT.abstract(config))
        return in_batches(
            lambda params, images: apply(params, images=images), engine, batch=AT_ONCE
        )

    def scores(params, images):
        return vit(params, images=images, config=config)[0]

    return in_batches(scores, engine, batch=AT_ONCE)


def draw(report, figures, run, images):
    """How loss and accuracy went, and the first digits of the test set that were misread."""
    misread, reached = figures["misread"], figures["test_accuracy"]
    path = report.out / "digits.png"
    with picture(path, (13, 6.4), about=report.header["device"]) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 0.95))
        of_loss, of_accuracy = left.subplots(2, 1, sharex=True)
        draw_losses(of_loss, run)
        of_loss.set(xlabel="", yscale="log", ylabel="loss, nats")
        draw_accuracies(of_accuracy, run, figures["held_out_accuracy"], reached)
        right.suptitle(
            f"{len(misread):,} of {figures['images']['test']:,} were misread; the first of them"
        )
        cells = right.subplots(3, 5).ravel()
        for cell in cells:
            cell.axis("off")
        for cell, (i, is_one, read_as) in zip(cells, misread, strict=False):
            cell.imshow(images[i, ..., 0], cmap="gray_r")
            cell.set_title(f"{is_one} read as {read_as}", fontsize=11)
        figure.suptitle(
            f"A Vision Transformer reads {reached:.2%} of MNIST's test digits after "
            f"{run.seconds / 60:.1f} minutes",
            fontweight="bold",
        )


def draw_accuracies(axes, run, accuracies, reached):
    """How many of the held-out digits were read rightly, and of the test set in the end."""
    _, seconds, shares = zip(*accuracies, strict=True)
    axes.plot(np.array(seconds) / 60, shares, "o-", color=THEIRS, label="held out from training")
    star = {"color": OURS, "markersize": 16, "zorder": 3, "label": f"test set: {reached:.2%}"}
    axes.plot(run.seconds / 60, reached, "*", **star)
    axes.axhline(TARGET, color=GREY, linestyle="--", linewidth=1, label=f"asked for: {TARGET:.0%}")
    axes.legend(frameon=False, loc="lower right")
    axes.set_ylim(min(0.9, *shares) - 0.005, 1)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.1%}")
    axes.set(ylabel="read rightly", xlabel="minutes of training")
