import numpy as np
import pytest
from flax import nnx

from accelerated import functional
from accelerated.layers.position import LearnedPosition
from reference.errors import InputError
from reference.layers.position import learned_position
from tests.mirror import assert_gradient, assert_mirror

TABLE = {"embedding": np.random.default_rng(0).standard_normal((7, 5))}
TWIN, _ = functional(LearnedPosition(7, 5, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("offset, leading", [(0, (2,)), (4, (2, 2)), (3, ())])
def test_learned_position_equals_its_twin(offset, leading):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((*leading, 3, 5))
    assert_gradient(learned_position, TABLE, x, offset=offset, rng=rng)
    assert_mirror(learned_position, TWIN, TABLE, x, offset=offset, rng=rng)


@pytest.mark.parametrize("engine", [learned_position, TWIN])
@pytest.mark.parametrize("length, offset", [(8, 0), (3, 5)])
def test_a_sequence_past_the_context_is_refused(engine, length, offset):
    with pytest.raises(InputError, match="the sequence has 8 tokens, the model's context only 7"):
        engine(TABLE, np.zeros((2, length, 5)), offset=offset)
