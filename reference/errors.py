"""What goes wrong with what a user gave: both engines raise these, with the same words."""


class InputError(ValueError):
    """An argument, a file or a text that cannot be used.

    The message names it, says what came, what is allowed, and what to do.
    """


class DtypeError(InputError, TypeError):
    """Something of the wrong kind: floats for tokens, bytes for text."""


class CheckpointError(InputError):
    """A checkpoint or a folder of weights that is missing, torn, or of something else."""
