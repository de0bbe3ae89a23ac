import base64
from functools import cache

import pytest
import regex
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from reference.errors import CheckpointError
from reference.tokenizers import BPE, cl100k_base, load_tokenizer
from reference.tokenizers.ranks import CL100K_PATTERN, CL100K_SPECIAL, read_ranks
from tests.tokenizers.texts import CHARACTERS, NUMBERS, PROSE, SAMPLES, drawn_texts, shared

FILE = "tiktoken/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"


@cache
def published():
    return cl100k_base(shared(FILE))


@pytest.fixture(scope="module")
def openai():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared("tiktoken")))
        return tiktoken.get_encoding("cl100k_base")


def write_ranks(path, tokens):
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@cache
def disagreeing():
    """The characters that `regex` and tiktoken class differently; see test_bpe."""
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    different = set()
    for one_class in (r"\p{L}", r"\p{N}", r"\s"):
        kept = tiktoken.Encoding(
            "class", pat_str=one_class, mergeable_ranks=single_bytes, special_tokens={}
        )
        theirs = kept.decode(kept.encode_ordinary(CHARACTERS))
        different |= set(theirs) ^ set(regex.findall(one_class, CHARACTERS))
    return different


@pytest.mark.parametrize("text", [PROSE[:100_000], "aaaa aaaaaaa abab ababab", ""])
def test_the_merges_come_back_from_the_tokens(text, tmp_path):
    tokenizer = BPE.train(text, special_tokens=())
    path = write_ranks(tmp_path / "ranks", tokenizer.tokens)
    assert tuple(read_ranks(path)) == tokenizer.merges


@given(st.text("ab", max_size=60), st.text("abc ", max_size=60))
def test_the_merges_come_back_from_any_tokens(tmp_path_factory, one, other):
    """Turns red if a token is cut into two others at any place, not where merges cut it."""
    tokenizer = BPE.train(f"{one} {other}", special_tokens=(), pattern=r"\S+|\s+")
    path = write_ranks(tmp_path_factory.mktemp("ranks") / "ranks", tokenizer.tokens)
    assert tuple(read_ranks(path)) == tokenizer.merges


def test_cl100k_base_has_a_name_for_each_id(openai):
    tokenizer = published()
    assert tokenizer.vocabulary_size == openai.n_vocab == 100_277
    assert CL100K_SPECIAL == openai._special_tokens
    assert CL100K_SPECIAL.items() <= tokenizer.special_ids.items()
    assert (
        tokenizer.tokens[100_256] == b"<|unused_100256|>" and len(set(tokenizer.tokens)) == 100_277
    )
    ids = {token: i for i, token in enumerate(tokenizer.tokens[:100_256])}
    assert ids == openai._mergeable_ranks


@NUMBERS
def test_ids_equal_tiktokens(number, openai):
    more = ["a\n  ", "\n \n", "  \n\n x\n ", "'ſ 'S'LL", "\r\n\t a", PROSE[:50_000]]
    for text in [*more, *SAMPLES.values(), *drawn_texts(number, disagreeing())]:
        ids = published().encode(text)
        assert ids == openai.encode_ordinary(text), text
        assert published().decode(ids) == text
    text = "a<|endoftext|>b<|fim_prefix|>"
    expected = openai.encode(text, allowed_special="all")
    assert published().encode(text, allowed_special="all") == expected


@given(st.text("a1' \n\r\t.", max_size=40))
def test_words_equal_tiktokens(text):
    """Turns red if blanks before a line end, or before a word, are cut otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared("tiktoken")))
        expected = tiktoken.get_encoding("cl100k_base").encode_ordinary(text)
    assert published().encode(text) == expected


def test_another_pattern_is_saved_and_loaded(tmp_path):
    tokenizer = BPE(published().merges[:300], ("<|a|>",), CL100K_PATTERN)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path) == tokenizer


LINES = [base64.b64encode(token).decode() for token in BPE(((64, 65), (256, 66))).tokens[:-1]]
TORN = {
    "no rank": (257, LINES[256], "must be a token in base64 and the rank 256"),
    "another rank": (257, f"{LINES[256]} 257", "and the rank 256"),
    "no base64": (257, "YW! 256", "and the rank 256"),
    "no token": (257, " 256", "and the rank 256"),
    "one token": (257, "YQ== 256", "which the lines before it make 1 tokens, not two"),
    "three tokens": (257, "YWJj 256", "which the lines before it make 3 tokens, not two"),
    "no byte": (1, "YWJj 0", "must be the byte 33"),
    "order": (2, f"{LINES[0]} 1", "must be the byte 34"),
}


@pytest.mark.parametrize(("number", "line", "message"), TORN.values(), ids=TORN)
def test_torn_files(number, line, message, tmp_path):
    lines = [f"{token} {i}" for i, token in enumerate(LINES)]
    path = tmp_path / "ranks"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_ranks(path) == [(64, 65), (256, 66)]
    lines[number - 1] = line
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"ranks, line {number} .*{message}"):
        read_ranks(path)


def test_another_vocabulary_is_not_cl100k_base(tmp_path):
    path = write_ranks(tmp_path / "ranks", BPE(((64, 65),)).tokens[:-1])
    with pytest.raises(CheckpointError, match="has 257 ranks, and cl100k_base 100256"):
        cl100k_base(path)
    with pytest.raises(CheckpointError, match="is missing"):
        cl100k_base(tmp_path / "none")
