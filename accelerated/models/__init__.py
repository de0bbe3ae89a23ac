"""The twin of each published system."""

from accelerated.models.gpt import GPT
from accelerated.models.llama import Llama
from reference.models import name_of

TWINS = {"gpt": GPT, "llama": Llama}


def twin_of(config):
    """The nnx.Module that a config is of, with its methods `abstract` and `loss`."""
    return TWINS[name_of(config)]
