import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accelerated.layers.contrastive as twins
import reference.layers.contrastive as reference_losses
from reference.errors import InputError
from reference.layers.contrastive import clip_loss, siglip_loss
from tests.mirror import assert_gradient, assert_mirror
from tests.peers import peer

# The loss of bfloat16 features is float32 in the twins; the reference keeps to float32 and 64.
NARROW = {np.float32: 2}
SCALARS = {"clip_loss": (1.3,), "siglip_loss": (0.8, -2.5)}
each = pytest.mark.parametrize(
    "loss_of, scalars", [(clip_loss, (1.3,)), (siglip_loss, (0.8, -2.5))], ids=SCALARS
)


def problem(seed, *scalars, shape=(5, 7)):
    images, texts = np.random.default_rng(seed).standard_normal((2, *shape))
    return images, texts, *(np.array(a) for a in scalars)


def test_clip_loss_equals_its_twin():
    rng = np.random.default_rng(0)
    for shape, log_scale in (((1, 3), 0.5), ((11, 3), -0.4), ((2, 13), 2.7)):
        assert_gradient(clip_loss, *problem(0, log_scale, shape=shape), rng=rng)
    assert_mirror(clip_loss, twins.clip_loss, *problem(1, 1.3), rng=rng, narrow=NARROW)


def test_siglip_loss_equals_its_twin():
    rng = np.random.default_rng(1)
    for shape, scalars in (((1, 3), (0.5, 1.0)), ((11, 3), (-0.4, -3.0)), ((2, 13), (2.3, -10.0))):
        assert_gradient(siglip_loss, *problem(2, *scalars, shape=shape), rng=rng)
    assert_mirror(siglip_loss, twins.siglip_loss, *problem(3, 0.8, -2.5), rng=rng, narrow=NARROW)


def test_clip_loss_equals_hugging_face_s():
    torch, modeling = peer("torch"), peer("transformers.models.clip.modeling_clip")
    args = problem(4, math.log(1 / 0.07))
    there = [torch.tensor(a, requires_grad=True) for a in args]
    images, texts = (torch.nn.functional.normalize(a, dim=-1) for a in there[:2])
    expected = modeling.image_text_contrastive_loss(there[2].exp() * texts @ images.T)
    expected.backward()
    loss, backward = clip_loss(*args)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    for ours, theirs in zip(backward(1.0), there, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-10, atol=1e-14)


TEXT = {"vocab_size": 23, "max_position_embeddings": 5, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {"image_size": 6, "patch_size": 3}
SMALL = {
    "hidden_size": 6,
    "intermediate_size": 7,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_contrastive_losses_equal_those_of_hugging_face_s_models(name):
    """Their features are of length 1 already, so of their gradients only what turns them counts."""
    torch, transformers = peer("torch"), peer("transformers")
    rng = np.random.default_rng(5)
    text = SMALL | TEXT | ({"projection_size": 6} if name == "Siglip" else {})
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=SMALL | IMAGE)
    model = getattr(transformers, f"{name}Model")(config).double().eval()
    theirs = model(
        input_ids=torch.tensor(rng.integers(3, 23, (5, 5))),
        pixel_values=torch.tensor(rng.standard_normal((5, 3, 6, 6))),
        return_loss=True,
    )
    scalars = [model.logit_scale] + ([model.logit_bias] if name == "Siglip" else [])
    there = [theirs.image_embeds, theirs.text_embeds, *scalars]
    images, texts, *numbers = (a.detach().numpy() for a in there)
    loss_of = siglip_loss if name == "Siglip" else clip_loss
    loss, backward = loss_of(images, texts, *(np.squeeze(a) for a in numbers))
    np.testing.assert_allclose(loss, theirs.loss.item(), rtol=1e-12)
    gradients = [g.numpy() for g in torch.autograd.grad(theirs.loss, there)]
    dimages, dtexts, *others = backward(1.0)
    for unit, ours, gradient in zip((images, texts), (dimages, dtexts), gradients, strict=False):
        turning = gradient - unit * np.vecdot(unit, gradient)[:, None]
        np.testing.assert_allclose(ours, turning, rtol=1e-9, atol=1e-13)
    for ours, gradient in zip(others, gradients[2:], strict=True):
        np.testing.assert_allclose(ours, gradient.item(), rtol=1e-10)


@each
@given(seed=st.integers(0, 2**32))
def test_images_and_texts_may_change_places(loss_of, scalars, seed):
    """Turns red if only the images pick their texts."""
    images, texts, *numbers = problem(seed, *scalars)
    loss, backward = loss_of(images, texts, *numbers)
    mirrored, mirrored_backward = loss_of(texts, images, *numbers)
    np.testing.assert_allclose(mirrored, loss, rtol=1e-12)
    dimages, dtexts, *_ = backward(1.0)
    np.testing.assert_allclose(mirrored_backward(1.0)[1], dimages, atol=1e-14)
    np.testing.assert_allclose(mirrored_backward(1.0)[0], dtexts, atol=1e-14)


@each
@given(seed=st.integers(0, 2**32))
def test_the_order_of_the_pairs_does_not_matter(loss_of, scalars, seed):
    """Turns red if the labels are not the rows' own numbers."""
    images, texts, *numbers = problem(seed, *scalars)
    order = np.random.default_rng(seed).permutation(5)
    loss, backward = loss_of(images, texts, *numbers)
    moved, moved_backward = loss_of(images[order], texts[order], *numbers)
    np.testing.assert_allclose(moved, loss, rtol=1e-12)
    for ours, theirs in zip(moved_backward(1.0)[:2], backward(1.0)[:2], strict=True):
        np.testing.assert_allclose(ours, theirs[order], atol=1e-14)


@each
@given(seed=st.integers(0, 2**32), exponent=st.floats(-4, 4))
def test_the_length_of_a_feature_does_not_matter(loss_of, scalars, seed, exponent):
    """Turns red if images or texts are not brought to length 1, or their backward forgets it."""
    images, texts, *numbers = problem(seed, *scalars)
    loss, backward = loss_of(images, texts, *numbers)
    factors = 10 ** (exponent * np.linspace(-1, 1, 5))[:, None]
    longer, _ = loss_of(images * factors, texts / factors, *numbers)
    np.testing.assert_allclose(longer, loss, rtol=1e-11)
    dimages, dtexts, *_ = backward(1.0)
    for feature, gradient in ((images, dimages), (texts, dtexts)):
        np.testing.assert_allclose(np.vecdot(feature, gradient), 0, atol=1e-13)


@given(st.integers(2, 13), st.floats(-2, 4))
def test_features_that_are_all_equal_are_a_surprise_of_log_n(pairs, log_scale):
    """Turns red if a sum is taken for a mean; nothing tells the pairs apart, whatever the scale."""
    features = np.ones((pairs, 3))
    loss, backward = clip_loss(features, 2 * features, np.array(log_scale))
    np.testing.assert_allclose(loss, math.log(pairs), rtol=1e-12)
    np.testing.assert_allclose(backward(1.0)[2], 0, atol=1e-12)


@given(st.integers(1, 13), st.floats(-2, 4))
def test_clip_loss_of_features_at_right_angles_is_known(pairs, log_scale):
    """Turns red if the scale is not exp(s): each picks one of cosine 1 from others of cosine 0.

    The slope's last digits are those of a probability near 1, times the scale.
    """
    scale = math.exp(log_scale)
    loss, backward = clip_loss(np.eye(pairs), np.eye(pairs), np.array(log_scale))
    others = (pairs - 1) * math.exp(-scale)
    np.testing.assert_allclose(loss, math.log1p(others), rtol=1e-10, atol=1e-15)
    slope = -scale * others / (1 + others)
    np.testing.assert_allclose(backward(1.0)[2], slope, rtol=1e-10, atol=2e-15 * scale)


def softplus(x):
    return np.logaddexp(0, x)


@given(st.integers(1, 13), st.floats(-2, 4), st.floats(-20, 20))
def test_siglip_loss_of_constants_is_known(pairs, log_scale, bias):
    """Turns red if the mean is over all pairs, or if those that do not belong have no minus."""
    scale, scalars = math.exp(log_scale), (np.array(log_scale), np.array(bias))
    equal, backward = siglip_loss(np.ones((pairs, 3)), np.ones((pairs, 3)), *scalars)
    others = (pairs - 1) * softplus(scale + bias)
    np.testing.assert_allclose(equal, softplus(-scale - bias) + others, rtol=1e-10)
    probability = np.exp(-softplus(-scale - bias))
    np.testing.assert_allclose(backward(1.0)[3], pairs * probability - 1, rtol=1e-9, atol=1e-12)
    apart, _ = siglip_loss(np.eye(pairs), np.eye(pairs), *scalars)
    others = (pairs - 1) * softplus(bias)
    np.testing.assert_allclose(apart, softplus(-scale - bias) + others, rtol=1e-10)


@pytest.mark.parametrize("name", SCALARS)
def test_a_feature_of_zeros_has_no_direction(name):
    """Turns red if its length, 0, divides."""
    images, texts, *numbers = problem(6, *SCALARS[name])
    images[2] = 0
    loss, backward = getattr(reference_losses, name)(images, texts, *numbers)
    gradients = backward(1.0)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)
    assert not gradients[0][2].any()
    np.testing.assert_allclose(getattr(twins, name)(images, texts, *numbers), loss, rtol=1e-12)


@pytest.mark.parametrize("name", SCALARS)
def test_the_loss_of_bfloat16_is_float32(name):
    """Turns red if a twin computes in the dtype that it is given."""
    args = [jnp.asarray(a, jnp.bfloat16) for a in problem(8, *SCALARS[name])]
    assert jax.eval_shape(getattr(twins, name), *args).dtype == np.float32


@pytest.mark.parametrize("module", [reference_losses, twins])
@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize(
    "images, texts, message",
    [
        ((5, 7), (3, 7), r"texts has shape \(3, 7\), images \(5, 7\); give equal shapes"),
        ((5, 2, 7), (5, 2, 7), r"images has shape \(5, 2, 7\); give \(N, D\), with a row for each"),
        ((0, 7), (0, 7), r"images has shape \(0, 7\); give \(N, D\)"),
    ],
)
def test_what_are_no_pairs_is_named(module, name, images, texts, message):
    scalars = [np.array(a) for a in SCALARS[name]]
    with pytest.raises(InputError, match=message):
        getattr(module, name)(np.ones(images), np.ones(texts), *scalars)


@pytest.mark.parametrize("module", [reference_losses, twins])
@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_of_another_shape_is_named(module, name):
    """Turns red if an array of one number is taken, whose gradient would have no axis."""
    images, texts, *scalars = problem(7, *SCALARS[name])
    scalars[-1] = scalars[-1][None]
    which = "log_scale" if name == "clip_loss" else "bias"
    with pytest.raises(InputError, match=rf"{which} has shape \(1,\); give one number"):
        getattr(module, name)(images, texts, *scalars)
