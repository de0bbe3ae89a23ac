"""tiktoken's ranks: a published BPE vocabulary in one file, such as `cl100k_base`.

Each line is a token, its bytes in base64, and its rank, which is its id. The merges are not there,
and need not be: a token of rank r was made when those below r were the vocabulary, by joining two
of them. So encode its bytes with the merges below r; what is left are the two tokens that merge r
joins. Done in order, from rank 256 on, this gives back all of them; if anything but two tokens is
left, the ranks are of no byte-pair encoding.

Special tokens are not in the file, and `cl100k_base` leaves out some ids among them. Here each id
has a name, those left out too, so that the number of ids is that of the model's table.

Source: OpenAI tiktoken, released code (load.py, openai_public.py).
"""

import base64

from reference.errors import CheckpointError
from reference.tokenizers.bpe import BPE, END_OF_TEXT
from reference.tokenizers.merging import join_pairs
from reference.tokenizers.vocabulary_files import BYTE_IDS, BYTES, read_text

CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"  # English endings that follow an apostrophe, in either case
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # letters, with the one sign or blank before them
    r"|\p{N}{1,3}"  # at most three digits
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # the rest that can be seen, with the line ends after it
    r"|\s*[\r\n]+"  # blanks up to a line end
    r"|\s+(?!\S)"  # blanks, but for the last one: a word after it may want it
    r"|\s+"
)
CL100K_SPECIAL = {
    END_OF_TEXT: 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}
CL100K_RANKS = 100256


def cl100k_base(path):
    """The vocabulary of GPT-3.5 and GPT-4 from its published file, cl100k_base.tiktoken -> BPE.

    Raises CheckpointError if the file is missing, torn or another's.
    """
    merges = read_ranks(path)
    if len(merges) != CL100K_RANKS - 256:
        raise CheckpointError(
            f"{path} has {256 + len(merges)} ranks, and cl100k_base {CL100K_RANKS}: it is cut "
            "short, or another vocabulary; copy it again"
        )
    names = {i: name for name, i in CL100K_SPECIAL.items()}
    ids = range(CL100K_RANKS, max(names) + 1)
    return BPE(merges, [names.get(i, f"<|unused_{i}|>") for i in ids], CL100K_PATTERN)


def read_ranks(path):
    """The merges, as pairs of ids, that a file of ranks was made with.

    Raises CheckpointError, with the line, if the file is torn or of no byte-pair encoding.
    """
    merges, joined = [], {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        token = parse_line(path, number, line)
        if number <= 256:
            if token != BYTES[number - 1 : number]:
                raise CheckpointError(
                    f"{path}, line {number} is {line!r}, and must be the byte "
                    f"{BYTES[number - 1]}: the first 256 ranks are the bytes as GPT-2 numbers them"
                )
            continue
        left = join_pairs(token.translate(BYTE_IDS), joined)
        if len(left) != 2:
            raise CheckpointError(
                f"{path}, line {number} has the token {token!r}, which the lines before it make "
                f"{len(left)} tokens, not two: it is torn or no byte-pair encoding; copy it again"
            )
        joined[tuple(left)] = (number, number - 1)
        merges.append(tuple(left))
    return merges


def parse_line(path, number, line):
    """The bytes of a token, on the line that its rank says."""
    try:
        token, rank = line.split(" ")
        decoded = base64.b64decode(token, validate=True)
        if int(rank) == number - 1 and decoded:
            return decoded
    except ValueError:
        pass
    raise CheckpointError(
        f"{path}, line {number} is {line!r}, and must be a token in base64 and the rank "
        f"{number - 1}: the file is torn; copy it again"
    )
