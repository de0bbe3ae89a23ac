"""The twin of each published system."""

from accelerated.models.bert import Bert
from accelerated.models.clip import Clip
from accelerated.models.gpt import GPT
from accelerated.models.gpt1 import GPT1
from accelerated.models.llama import Llama
from accelerated.models.transformer import Transformer
from accelerated.models.vit import ViT
from reference.models import name_of

TWINS = {
    "bert": Bert,
    "clip": Clip,
    "gpt": GPT,
    "gpt1": GPT1,
    "llama": Llama,
    "transformer": Transformer,
    "vit": ViT,
}


def twin_of(config):
    """The nnx.Module that a config is of, with its methods `abstract` and `loss`."""
    return TWINS[name_of(config)]
