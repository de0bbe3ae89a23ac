"""Less memory for more time: a component that forgets what it computed, and computes it again.

A `backward` holds on to all that its forward made, and a model's L blocks all wait for theirs until
the last one is done.  A block that keeps its input alone needs that much less, and its backward
begins with a second forward.  The gradients are the same, to the last bit.

    gpt's memory    L blocks of everything    ->    L inputs, and one block of everything
    its time        forward and backward, 3   ->    forward twice and backward, 4

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost", sec. 4.
"""

__all__ = []


def recomputed(component):
    """The same component, with a `backward` that keeps the arguments and nothing else.

    Of what has no derivative and comes as a third value, nothing is lost.  Dropout draws the same
    noise again, for its key is an argument.  In JAX: `jax.checkpoint`.
    """

    def forgetful(*differentiated, **options):
        y, _, *aside = component(*differentiated, **options)

        def backward(dy):
            _, component_backward, *_ = component(*differentiated, **options)
            return component_backward(dy)

        return y, backward, *aside

    return forgetful
