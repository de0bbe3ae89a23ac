import numpy as np
from flax import nnx

from accelerated import functional
from accelerated.models.bert_heads import BertPooler
from reference.models.bert_heads import bert_pooler
from tests.mirror import assert_gradient, assert_mirror, random_like


def test_bert_pooler_equals_its_twin():
    """Only the first position is read.  Turns red if it is the last."""
    rng = np.random.default_rng(0)
    apply, params = functional(BertPooler(5, rngs=nnx.Rngs(0)))
    params = random_like(params, rng)
    params = {name: a.astype(np.float64) for name, a in params.items()}
    x = rng.standard_normal((3, 7, 5))
    assert_gradient(bert_pooler, params, x, rng=rng)
    assert_mirror(bert_pooler, apply, params, x, rng=rng)
    np.testing.assert_array_equal(bert_pooler(params, x)[0], bert_pooler(params, x[:, :1])[0])
