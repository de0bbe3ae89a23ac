"""A language model to measure, to go on from or to write with: a run's, or one that others trained.

--checkpoint FOLDER   a run's: its best checkpoint, or its latest where none was measured
--weights DIRECTORY   a published one, in Hugging Face's form: see `reference.pretrained`
"""

from pathlib import Path
from typing import Any, NamedTuple

from reference.data.source import is_table
from reference.errors import CheckpointError, InputError
from reference.inference.cache import check_decoder
from reference.pretrained import FAMILIES, load, local
from reference.pretrained.files import SETTINGS
from reference.tokenizers import load_tokenizer
from reference.tokenizers.bpe import END_OF_TEXT
from reference.tokenizers.checks import check_tokenizer
from reference.training import checkpoint
from reference.training.array_files import read_json
from reference.training.run_folder import checkpoint_in

RUN = "runs/gpt"
BEGINNING = ("llama",)  # models of ours whose texts begin with a token of their own


class LanguageModel(NamedTuple):
    """What measures a text, or writes one."""

    name: str  # to call it by
    config: Any
    params: dict
    tokenizer: Any
    before: tuple[int, ...]  # tokens that every text begins with
    ends: tuple[int, ...]  # tokens that end a text
    settings: dict  # of the run; of published weights none
    folder: Path  # where it lies


def add_options(parser):
    """The two ways to name a model."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--checkpoint", metavar="FOLDER", default=RUN, help=f"a run's folder ({RUN})"
    )
    either.add_argument(
        "--weights", metavar="DIRECTORY", help="published weights, in place of a run"
    )


def named_in(options):
    """The words of a command line that name the model."""
    if options.weights is not None:
        return "--weights", options.weights
    return "--checkpoint", options.checkpoint


def language_model(options):
    """The LanguageModel that some options name.

    Raises InputError or CheckpointError where there is none, or none that writes.
    """
    return trained(options.checkpoint) if options.weights is None else published(options.weights)


def either(folder):
    """The LanguageModel in a folder, of whichever kind it is."""
    return (published if Path(folder, SETTINGS).is_file() else trained)(folder)


def trained(folder):
    """That of a run: of its best checkpoint, or of its latest.

    A model that learnt from documents begins each with a token, and where it writes that token
    again, the document is at its end.
    """
    best = checkpoint_in(folder, "best")
    found = checkpoint.load(best)
    if found.tokenizer is None:
        raise InputError(f"{best} has no tokenizer; give the folder of a language model")
    check_decoder(found.config)
    separator = ()
    if is_table(found.settings.get("data")):
        separator = (found.tokenizer.special_ids[END_OF_TEXT],)
    name, made = f"{best}, {found.step} steps", (found.config, found.weights, found.tokenizer)
    return LanguageModel(name, *made, separator, separator, found.settings, best)


def published(directory):
    """That of a directory in Hugging Face's form, or of a name on its hub."""
    folder = local(directory)
    settings = read_json(folder / SETTINGS)
    family = FAMILIES.get(settings.get("model_type"))
    config, params = load(folder)
    check_decoder(config)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(config, tokenizer, source=folder)
    begins, ends = (
        ids_of(folder / SETTINGS, settings, name, config)
        for name in ("bos_token_id", "eos_token_id")
    )
    before = begins if family.model in BEGINNING else ()
    return LanguageModel(str(directory), config, params, tokenizer, before, ends, {}, folder)


def ids_of(path, settings, name, config):
    """The token or tokens of a setting, as a tuple; none where it is left out."""
    value = settings.get(name)
    ids = tuple(value if isinstance(value, list) else [] if value is None else [value])
    if not all(type(token) is int and 0 <= token < config.vocabulary for token in ids):
        raise CheckpointError(
            f"{path}: {name} is {value!r}, and the model has the tokens 0 to "
            f"{config.vocabulary - 1}: copy it again"
        )
    return ids
