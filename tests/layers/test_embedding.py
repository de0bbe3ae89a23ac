import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from accelerated import functional
from accelerated.layers.embedding import Embed, SegmentEmbed
from reference.errors import DtypeError, InputError
from reference.layers.embedding import embed, segment_embed, unembed
from reference.layers.normalization import layer_norm
from reference.layers.position import learned_position
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer

TABLE = {"embedding": np.random.default_rng(0).standard_normal((11, 5))}
TWIN = Embed(11, 5, rngs=nnx.Rngs(0))
SEGMENTS = {"embedding": np.random.default_rng(1).standard_normal((3, 5))}
SEGMENT_TWIN, _ = functional(SegmentEmbed(3, 5, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_embed_equals_its_twin(shape):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 11, shape)
    ids[..., -1] = ids[..., 0]  # used twice: its gradients add
    apply, _ = functional(TWIN)
    assert_gradient(embed, TABLE, ids=ids, rng=rng)
    assert_mirror(embed, apply, TABLE, ids=ids, rng=rng)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_unembed_equals_its_twin(shape):
    rng = np.random.default_rng(1)
    apply, _ = functional(TWIN, Embed.unembed)
    x = rng.standard_normal(shape)
    assert_gradient(unembed, TABLE, x, rng=rng)
    assert_mirror(unembed, apply, TABLE, x, rng=rng)


@pytest.mark.parametrize("shape", [(7,), (2, 7)])
def test_segment_embed_equals_its_twin(shape):
    rng = np.random.default_rng(2)
    x, segments = rng.standard_normal((*shape, 5)), rng.integers(0, 3, shape)
    assert_gradient(segment_embed, SEGMENTS, x, segments=segments, rng=rng)
    assert_mirror(segment_embed, SEGMENT_TWIN, SEGMENTS, x, segments=segments, rng=rng)


@given(st.integers(0, 2**32))
def test_a_segment_s_vector_is_added_as_an_embedding(seed):
    """Turns red if the backward counts each segment once, or x is replaced rather than added to."""
    rng = np.random.default_rng(seed)
    x, segments = rng.standard_normal((2, 7, 5)), rng.integers(0, 3, (2, 7))
    y, backward = segment_embed(SEGMENTS, x, segments=segments)
    added, embed_backward = embed(SEGMENTS, ids=segments)
    np.testing.assert_array_equal(y, x + added)
    dy = rng.standard_normal(y.shape)
    dparams, dx = backward(dy)
    np.testing.assert_array_equal(dparams["embedding"], embed_backward(dy)["embedding"])
    np.testing.assert_array_equal(dx, dy)
    for segment in range(3):
        expected = dy[segments == segment].sum(axis=0)
        np.testing.assert_allclose(dparams["embedding"][segment], expected, atol=1e-13)


@given(st.integers(0, 2**32))
def test_a_table_tied_at_both_ends_gets_the_sum_of_both_gradients(seed):
    """The derivative of Σ dy ∘ (E[ids] Eᵀ) by E.  Turns red if either use is left out, or the
    backward of the first writes rows rather than adding them.
    """
    rng = np.random.default_rng(seed)
    ids, direction = rng.integers(0, 11, 7), {"embedding": rng.standard_normal((11, 5))}
    embedded, embed_backward = embed(TABLE, ids=ids)
    scores, unembed_backward = unembed(TABLE, embedded)
    dy = rng.standard_normal(scores.shape)
    dtable_as_output, dembedded = unembed_backward(dy)
    dtable = embed_backward(dembedded)["embedding"] + dtable_as_output["embedding"]

    def loss(t):
        moved = {"embedding": TABLE["embedding"] + t * direction["embedding"]}
        return np.vdot(dy, unembed(moved, embed(moved, ids=ids)[0])[0])

    slope = (loss(1e-3) - loss(-1e-3)) / 2e-3  # exact: the loss is quadratic in t
    np.testing.assert_allclose(np.vdot(dtable, direction["embedding"]), slope, atol=1e-8)


def test_the_tied_gradient_is_that_of_the_twin():
    rng = np.random.default_rng(3)
    ids, dy = rng.integers(0, 11, (2, 7)), rng.standard_normal((2, 7, 11))
    look_up, score = functional(TWIN)[0], functional(TWIN, Embed.unembed)[0]

    @jax.grad
    def gradient(params):
        return (dy * score(params, look_up(params, ids=ids))).sum()

    embedded, embed_backward = embed(TABLE, ids=ids)
    dtable_as_output, dembedded = unembed(TABLE, embedded)[1](dy)
    dtable = embed_backward(dembedded)["embedding"] + dtable_as_output["embedding"]
    np.testing.assert_allclose(gradient(TABLE)["embedding"], dtable, rtol=1e-11, atol=1e-12)


def test_token_segment_and_position_are_added_as_in_bert():
    """Then normalized: Hugging Face's embeddings, in value and all gradients."""
    torch, transformers = peer("torch"), peer("transformers")
    from transformers.models.bert.modeling_bert import BertEmbeddings

    rng = np.random.default_rng(4)
    sizes = {"vocab_size": 11, "hidden_size": 5, "type_vocab_size": 3}
    config = transformers.BertConfig(**sizes, max_position_embeddings=7, pad_token_id=None)
    theirs = BertEmbeddings(config).double().eval()
    ids, segments = rng.integers(0, 11, (2, 7)), rng.integers(0, 3, (2, 7))
    expected = theirs(input_ids=torch.tensor(ids), token_type_ids=torch.tensor(segments))
    dy = rng.standard_normal(expected.shape)
    expected.backward(torch.tensor(dy))

    tables = (theirs.word_embeddings, theirs.token_type_embeddings, theirs.position_embeddings)
    token, segment, position = ({"embedding": a.weight.detach().numpy()} for a in tables)
    norm = {"scale": np.ones(5), "bias": np.zeros(5)}
    embedded, token_backward = embed(token, ids=ids)
    typed, segment_backward = segment_embed(segment, embedded, segments=segments)
    placed, position_backward = learned_position(position, typed)
    y, norm_backward = layer_norm(norm, placed, epsilon=config.layer_norm_eps)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-11, atol=1e-11)
    dposition, dtyped = position_backward(norm_backward(dy)[1])
    dsegment, dembedded = segment_backward(dtyped)
    for ours, table in zip((token_backward(dembedded), dsegment, dposition), tables, strict=True):
        gradient = table.weight.grad.numpy()
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(ours["embedding"], gradient, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("engine", [segment_embed, SEGMENT_TWIN])
@pytest.mark.parametrize(
    "segments, error, message",
    [
        (np.array([0, 3]), InputError, r"segments\[1\] is 3, outside the vocabulary \[0, 3\)"),
        (np.array([-1, 0]), InputError, r"segments\[0\] is -1, outside"),
        (np.array([0.0, 1.0]), DtypeError, "segments is of float64; give an array of integers"),
        (np.array([0, 1, 2]), InputError, r"segments has shape \(3,\), x \(2, 5\); give one"),
    ],
)
def test_segments_that_are_no_rows_are_named(engine, segments, error, message):
    with pytest.raises(error, match=message):
        engine(SEGMENTS, np.zeros((2, 5)), segments=segments)


def test_a_row_used_ten_times_gets_ten_gradients():
    """Turns red if the backward writes `dtable[ids] = dy`."""
    _, backward = embed(TABLE, ids=np.full(10, 3))
    expected = np.zeros((11, 5))
    expected[3] = 10
    np.testing.assert_array_equal(backward(np.ones((10, 5)))["embedding"], expected)


@pytest.mark.parametrize("engine", ["reference", "accelerated"])
@pytest.mark.parametrize(
    "ids, error, message",
    [
        (
            np.array([[1, 2], [3, 11]]),
            InputError,
            r"ids\[1, 1\] is 11, outside the vocab.*\[0, 11\)",
        ),
        (np.array([0, -1]), InputError, r"ids\[1\] is -1, outside"),
        (np.array([2**33 + 5]), InputError, r"ids\[0\] is 8589934597, outside"),
        (np.array([1.0]), DtypeError, "ids is of float64; give an array of integers"),
        ([1, 2], DtypeError, "ids is a list; give an array of integers"),
    ],
)
def test_ids_that_are_no_rows_are_named(engine, ids, error, message):
    apply, _ = functional(TWIN)
    call = {"reference": embed, "accelerated": apply}[engine]
    with pytest.raises(error, match=message):
        call(TABLE, ids=ids)
