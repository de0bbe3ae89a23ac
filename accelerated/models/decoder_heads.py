"""What a decoder is asked: which token comes next, or what else its last layer can tell."""

import jax
import jax.numpy as jnp

from accelerated.layers.dropout import dropout
from accelerated.layers.embedding import known
from accelerated.layers.linear import Linear
from accelerated.layers.loss import cross_entropy
from reference.models.bert_heads import CLASSES, check_names, share_of
from reference.models.decoder_batches import HEADS, check_batch, check_kept, check_question
from reference.models.decoder_heads import check_ignore, ends_of

__all__ = ["last_kept"]


def last_kept(x, *, kept=None):
    """Where kept is not known yet, any row is read up to the last True."""
    if kept is None:
        return x[:, -1]
    check_kept(kept, x.shape[:2], values=known(kept))
    return jnp.take_along_axis(x, ends_of(jnp.asarray(kept))[:, None, None], axis=1)[:, 0]


def head_of(config, *, rngs):
    """The layers of a head beside those of the language model, by their names."""
    if config.head in CLASSES:
        biased = config.head == "token_classification"
        return {"classifier": Linear(config.width, config.labels, use_bias=biased, rngs=rngs)}
    if config.head == "question_answering":
        return {"spans": Linear(config.width, 2, rngs=rngs)}
    return {}


def logits_of(model, *, tokens, kept=None, documents=None, key=None):
    """The method `logits` of a decoder with the methods `hidden` and `score`."""
    config = model.config
    check_question(config, tokens, kept, documents, values=known(kept))
    x = model.hidden(tokens=tokens, documents=documents, key=key)
    if config.head == "language":
        return {"tokens": model.score(x)}
    if config.head == "question_answering":
        scores = model.spans(x)
        return {"starts": scores[..., 0], "ends": scores[..., 1]}
    if config.head == "sequence_classification":
        return {"classes": model.classifier(last_kept(x, kept=kept))}
    head_key = None if key is None else jax.random.fold_in(key, config.layers + 2)
    return {"classes": model.classifier(dropout(x, rate=config.classifier_dropout, key=head_key))}


def loss_of(model, *, tokens, answers, ignore, kept=None, documents=None, key=None):
    """The method `loss` of such a decoder."""
    config, inputs = model.config, {"tokens": tokens, "kept": kept, "documents": documents}
    given = check_names(config, answers, HEADS)
    if config.head != "language":
        values = all(known(array) for array in (inputs | given).values())
        check_ignore(ignore)
        check_batch(config, **inputs, **given, values=values)
    losses = [
        cross_entropy(scores, labels=given.get(question, given.get("labels")), ignore=ignore)
        for question, scores in model.logits(**inputs, key=key).items()
    ]
    return losses[0] if len(losses) == 1 else share_of(config) * sum(losses)
