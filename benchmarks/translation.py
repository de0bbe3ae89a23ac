"""The Transformer of 2017 learns to translate English captions into German, on Multi30k.

The paper had 150 times as many pairs, so the model is small: half the width of the smallest in its
table.  As in the paper: one table for source, target and output, dropout, label smoothing, the mean
of the last checkpoints, beam search of 4 with a length penalty of 0.6, BLEU.
Differs from the paper in the wiring, "pre", to which its authors' code came soon after (`--wiring
post` is the paper's), and in the schedule, a cosine: so short a run must end with a low rate.
Source of the data: Elliott et al. 2016, "Multi30K: multilingual English-German image descriptions".
"""

import tempfile
import textwrap
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

import accelerated.inference.beam
import reference.inference.beam
from benchmarks.learning import (
    OURS,
    THEIRS,
    Report,
    draw_losses,
    found_in,
    learn,
    picture,
    shortened,
)
from benchmarks.report import GREY
from reference.data.buckets import Rows
from reference.data.parallel import read_parallel
from reference.errors import InputError
from reference.models import parameter_count
from reference.models.transformer import TransformerConfig, flops_per_example
from reference.tokenizers import BPE
from reference.training import TrainingConfig
from reference.training.averaging import averaged
from reference.training.state import keys_of

TARGET, LIMIT = 20.0, 2700  # BLEU; seconds
PAD, END = SPECIAL = ("<|pad|>", "<|end|>")
VOCABULARY = 4000
CONFIG = partial(TransformerConfig, context=128, layers=3, heads=4, width=128, hidden=512)
TRAINING = TrainingConfig(
    steps=4000,
    batch=64,
    length=40,  # of source and target, as the speed is told
    learning_rate=2e-3,
    final_learning_rate=1e-5,
    warmup=200,
    weight_decay=0.01,
    beta2=0.98,
    epsilon=1e-9,
)
# The lengths that pairs are filled up to: each is a step to compile.  Of the training pairs, those
# that are longer, six in a thousand, are left out.
BOUNDARIES = (12, 16, 20, 26, 40)
AVERAGED, LOOKS = 5, 14
BEAMS, ALPHA = 4, 0.6
TRANSLATORS = {
    "accelerated": accelerated.inference.beam.translate,
    "reference": reference.inference.beam.translate,
}
AT_ONCE = 100  # sentences that are translated together
LONGER = 16  # tokens that a translation may have more than its source is filled up to
LOOKED_AT = 300  # pairs of the validation set that are translated for each kept state
SHOWN = 5  # translations of the test set, in the figures and in the picture


class Pairs(Rows):
    """`Rows` of pairs, each as long as the longer of its two sides, as `transformer_loss` wants
    them: in `Rows`, `kept` says where the row ends, and here each side ends by itself.
    """

    def _filled(self, numbers):
        batch = super()._filled(numbers)
        del batch["kept"]
        return batch


def run(
    data,
    out,
    *,
    engine="accelerated",
    steps=None,
    seed=0,
    command=None,
    begun=None,
    wiring="pre",
    config=CONFIG,
    training=TRAINING,
    vocabulary=VOCABULARY,
    boundaries=BOUNDARIES,
):
    """Train, translate the test set, and leave figures and a picture in the folder `out`.

    data: the folder of Multi30k's files.  Raises InputError for what cannot be used, and where
    sacrebleu is not installed.
    """
    bleu = metric()
    report = Report.begin(out, command=command, begun=begun, packages=("sacrebleu",))
    training = replace(training, seed=seed, **shortened(training, steps))
    texts = {name: read(data, name) for name in ("train", "val", "test_2016_flickr")}
    tokenizer = learnt(texts["train"], vocabulary)
    pad, end = tokenizer.special_ids.values()
    config = config(tokenizer.vocabulary_size, pad=pad, end=end, wiring=wiring)
    rows = {name: rows_of(texts[name], tokenizer, boundaries[-1]) for name in ("train", "val")}
    sets = both_sets(rows, tokenizer, boundaries, training)
    figures = begun_with(report, engine, config, training, sets[0])
    figures["pairs"] = {name: len(pairs) for name, pairs in (texts | rows).items()}
    report.console.print(
        f"{parameter_count(config):,} weights; {figures['operations_a_step'] / 1e9:.1f} billion "
        f"floating-point operations a step, {sets[0].each_epoch} steps an epoch\n"
    )
    report.out.mkdir(parents=True, exist_ok=True)
    write = partial(translations, engine=engine, tokenizer=tokenizer, config=config)
    with tempfile.TemporaryDirectory() as folder:
        of_run = learn(engine, config, training, *sets, folder=Path(folder) / "run", looks=LOOKS)
        pairs = texts["val"][:LOOKED_AT]
        figures["validation_bleu"] = [
            (k.step, k.seconds, score(bleu, write(k.params, pairs, beams=1), pairs).score)
            for k in of_run.kept
        ]
        last = [k.folder for k in of_run.kept[-AVERAGED:]]
        written = write(averaged(last).state.params, texts["test_2016_flickr"], beams=BEAMS)
    figures |= tested(bleu, written, texts["test_2016_flickr"])
    lines = "".join(f"{text}\n" for text in written)  # for whoever wants to measure them again
    (report.out / "translation.de").write_text(lines, encoding="utf-8")
    figures["search"] = {"beams": BEAMS, "alpha": ALPHA, "averaged": len(last)}
    draw(report, figures, of_run)
    report.finish("translation", figures, of_run)
    report_on(report, figures)
    return figures


def begun_with(report, engine, config, training, data):
    """The figures that are known before a run."""
    return {
        "header": report.header,
        "engine": engine,
        "model": asdict(config) | {"parameters": parameter_count(config)},
        "training": asdict(training),
        "epochs": training.steps / data.each_epoch,
        "operations_a_step": operations(config, data, training),
        "target": {"test_bleu": TARGET, "seconds": LIMIT},
    }


def tested(bleu, written, pairs):
    """What a test set's translations are worth, by which measure, and the first of them."""
    found = score(bleu, written, pairs)
    return {
        "test_bleu": found.score,
        "signature": str(bleu.get_signature()),
        "precisions": found.precisions,
        "brevity_penalty": found.bp,
        "translations": [
            {"source": source, "reference": target, "written": text}
            for (source, target), text in zip(pairs, written[:SHOWN], strict=False)
        ],
    }


def report_on(report, figures):
    """What was reached, as a table."""
    training, pairs = figures["training"], figures["pairs"]
    report.table(
        "The Transformer of 2017 on Multi30k, English to German",
        {"BLEU on flickr2016": f"{figures['test_bleu']:.1f}"},
        {"BLEU on flickr2016": f"at least {TARGET:.0f}"},
        {
            "weights": figures["model"]["parameters"],
            "tokens in the vocabulary": figures["model"]["vocabulary"],
            "pairs to learn from": pairs["train"],
            "pairs tested on": pairs["test_2016_flickr"],
            "steps": f"{training['steps']:,} of {training['batch']} pairs",
            "epochs": f"{figures['epochs']:.1f}",
        },
        figures["seconds"],
        limit=LIMIT,
    )
    report.console.print(f"BLEU is sacrebleu's: {figures['signature']}")


def metric():
    """sacrebleu's BLEU, with its own tokens.  Raises InputError where it is not installed."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise InputError(
            "sacrebleu is not installed, and BLEU is its: pip install 'twinformer[metrics]'"
        ) from None
    return BLEU()


def score(bleu, written, pairs):
    """The BLEU of translations of some pairs."""
    return bleu.corpus_score(written, [[target for _, target in pairs]])


def read(folder, name):
    """The pairs (English, German) of a part of Multi30k."""
    paths = (found_in(folder, f"{name}.{language}") for language in ("en", "de"))
    return [(source, target) for _, source, target in read_parallel(*paths)]


def learnt(pairs, vocabulary):
    """A tokenizer for both languages together."""
    text = "\n".join(sentence for pair in pairs for sentence in pair)
    return BPE.train(text, vocabulary, special_tokens=SPECIAL)


def both_sets(rows, tokenizer, boundaries, training):
    """The pairs to learn from, and those to look at while it learns, which all have one length."""
    fitting = {"batch": training.batch, "pad": tokenizer.special_ids[PAD]}
    fitting["key"] = keys_of(training.seed).data
    lengths = {"train": boundaries, "val": boundaries[-1:]}
    return [Pairs(rows[name], boundaries=each, **fitting) for name, each in lengths.items()]


def rows_of(pairs, tokenizer, longest):
    """Pairs as `Pairs` takes them, without those that are longer than the longest boundary."""
    pad, end = (tokenizer.special_ids[name] for name in SPECIAL)
    rows = []
    for source, target in pairs:
        read, said = [*tokenizer.encode(source), end], [*tokenizer.encode(target), end]
        length = max(len(read), len(said))
        if length > longest:
            continue
        rows.append(
            {
                "source": read + [pad] * (length - len(read)),
                "source_kept": np.arange(length) < len(read),
                "tokens": [pad, *said[:-1]] + [pad] * (length - len(said)),
                "labels": said + [-100] * (length - len(said)),
            }
        )
    if not rows:
        raise InputError(f"no pair has {longest} tokens or fewer on both sides; give shorter ones")
    return rows


def operations(config, data, training):
    """Floating-point operations of a step, the mean over an epoch, what fills up included."""
    lengths = [data.batch(step)["tokens"].shape[1] for step in range(data.each_epoch)]
    return training.batch * float(np.mean([flops_per_example(config, n, n) for n in lengths]))


def translations(params, pairs, *, engine, tokenizer, config, beams):
    """What a model makes of the sources of some pairs: texts, in their order.

    Those of one length go together, always as many, and filled up to a power of two: so that a few
    compilations serve all.
    """
    on_device = jax.device_put(params) if engine == "accelerated" else params
    tokens = [[*tokenizer.encode(source), config.end] for source, _ in pairs]
    order = np.argsort([len(row) for row in tokens], kind="stable")
    texts = [None] * len(pairs)
    for first in range(0, len(order), AT_ONCE):
        places = order[first : first + AT_ONCE]
        sizes = np.array([len(tokens[i]) for i in places])[:, None]
        length = min(max(16, 1 << int(sizes.max() - 1).bit_length()), config.context)
        source = np.full((AT_ONCE, length), config.pad, np.int32)
        kept = np.zeros(source.shape, bool)
        kept[: len(places)] = np.arange(length) < sizes
        kept[len(places) :, 0] = True
        for row, i in zip(source, places, strict=False):
            row[: len(tokens[i])] = tokens[i]
        found = TRANSLATORS[engine](
            on_device,
            source=source,
            source_kept=kept,
            config=config,
            beams=beams,
            alpha=ALPHA,
            steps=min(length + LONGER, config.context) - 1,
        )
        for i, written in zip(places, found.tokens[:, 0], strict=False):
            text = tokenizer.decode(written[~np.isin(written, (config.pad, config.end))])
            texts[i] = " ".join(text.split())  # one line each, whatever an untrained model writes
    return texts


def draw(report, figures, run):
    """How BLEU and the loss went, and the first translations of the test set."""
    path, bleu = report.out / "translation.png", figures["test_bleu"]
    with picture(path, (14, 7), about=report.header["device"]) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05))
        of_bleu, of_loss = left.subplots(2, 1, sharex=True)
        _, seconds, scores = zip(*figures["validation_bleu"], strict=True)
        of_bleu.plot(np.array(seconds) / 60, scores, "o-", color=THEIRS, label="held out, greedy")
        star = {"color": OURS, "markersize": 16, "label": "test set, averaged, beam of 4"}
        of_bleu.plot(run.seconds / 60, bleu, "*", **star)
        line = {"linestyle": "--", "linewidth": 1, "label": f"asked for: {TARGET:.0f}"}
        of_bleu.axhline(TARGET, color=GREY, **line)
        of_bleu.set_ylabel("BLEU")
        of_bleu.set_ylim(bottom=0)
        of_bleu.legend(frameon=False, loc="lower right")
        draw_losses(of_loss, run)
        of_loss.set_ylabel("loss, nats a token")
        axes = right.subplots()
        axes.axis("off")
        text = "\n\n".join(map(beside, figures["translations"]))
        axes.text(0, 1, text, va="top", family="monospace", fontsize=10.5)
        right.suptitle("The first sentences of the test set")
        figure.suptitle(
            f"English to German after {run.seconds / 60:.0f} minutes: {bleu:.1f} BLEU on "
            "Multi30k's test set",
            fontweight="bold",
        )


def beside(example):
    """A sentence, what the model makes of it and what a person did, as text."""
    named = {"English": "source", "it writes": "written", "a person": "reference"}
    return "\n".join(
        line
        for name, key in named.items()
        for line in textwrap.wrap(f"{name:>9}: {example[key]}", 64, subsequent_indent=" " * 11)
    )
