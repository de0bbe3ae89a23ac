import numpy as np
import pytest

import reference.training.loop
from reference.models.gpt import GPTConfig
from reference.training.loop import TrainingConfig
from tests.peers import peer


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-9), ("float32", 1e-5)])
def test_pytorch_s_training_is_ours(dtype, tolerance):
    """Ten steps of the peer that is timed beside us.  Turns red if a bias decays there."""
    torch = peer("torch")
    from benchmarks.torch_gpt import TorchGPT

    config = GPTConfig(50, 8, layers=2, heads=3, width=12)
    settings = TrainingConfig(steps=10, batch=4, length=7, warmup=2, clip=0.5, dtype=dtype)
    tokens = np.random.default_rng(0).integers(0, 50, 500)
    state = reference.training.loop.initial_state(config, settings)
    model = TorchGPT(state.params, config, settings)
    batches = reference.training.loop.batches(
        tokens, length=7, batch=4, key=reference.training.loop.keys_of(1).data
    )
    for _, (inputs, labels) in zip(range(10), batches, strict=False):
        batch = {"tokens": inputs, "labels": labels, "key": None}
        state, loss = reference.training.loop.train_step(
            state, **batch, config=config, training=settings
        )
        theirs = model.train_step(torch.tensor(inputs), torch.tensor(labels))
        np.testing.assert_allclose(theirs.item(), loss, rtol=tolerance)
