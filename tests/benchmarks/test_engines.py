import jax
import numpy as np
import pytest

import reference.training.loop
from benchmarks import jax_gpt
from reference.models.gpt import GPTConfig
from reference.training.config import TrainingConfig, rate
from reference.training.state import initial_state
from tests.peers import peer


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-9), ("float32", 1e-5)])
def test_the_training_of_what_is_timed_beside_us_is_ours(dtype, tolerance):
    """Ten steps of PyTorch's and of plain JAX's.  Turns red if a bias decays there."""
    torch = peer("torch")
    from benchmarks.torch_gpt import TorchGPT

    config = GPTConfig(50, 70, layers=2, heads=3, width=12)
    settings = TrainingConfig(steps=10, batch=4, length=70, warmup=2, clip=0.5, dtype=dtype)
    ids = np.random.default_rng(0).integers(0, 50, (10, 2, 4, 70))
    state = initial_state(config, settings)
    model = TorchGPT(state.params, config, settings)
    in_jax = jax.device_put(tuple(state[:4]))
    for step, (inputs, labels) in enumerate(ids, 1):
        batch = {"tokens": inputs, "labels": labels}
        state, figures = reference.training.loop.train_step(
            state, batch, key=None, config=config, training=settings
        )
        loss = figures["loss"]
        theirs = model.train_step(torch.tensor(inputs), torch.tensor(labels))
        np.testing.assert_allclose(theirs.item(), loss, rtol=tolerance)
        in_jax, by_hand = jax_gpt.train_step(
            in_jax, inputs, labels, rate(settings)(step), config=config, training=settings
        )
        np.testing.assert_allclose(by_hand, loss, rtol=tolerance)
