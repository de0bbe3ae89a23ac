import copy
import dataclasses
import json
import os
import pickle
import time
from collections import Counter
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerated.tokenizers import BPE as AcceleratedBPE
from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers import BPE, bpe
from reference.tokenizers.bpe import END_OF_TEXT, PATTERN
from reference.tokenizers.vocabulary_files import BYTE_IDS, BYTES
from tests.peers import peer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ENGINES = pytest.mark.parametrize("engine", [BPE, AcceleratedBPE], ids=["numpy", "tiktoken"])
TEXT = "\n".join(topics.values())
SAMPLES = {
    "english": "The cat's toys, and I'll say they're 12 of'em: don't DON'T she'd've.",
    "contractions": "'s't're've'm'll'd 'S 'LL ’s a'sb 's' ''s",
    "languages": "Größe naïve — Привет, мир! 日本語のテキスト 한국어 नमस्ते العربية ไทย ½ ² Ⅷ ١٢٣",
    "emoji": "👩‍👩‍👧‍👦 🇩🇪🏳️‍🌈 e\u0301 \u200b\ufeff\u00a0\u3000\u2028x",
    "code": "def f(x):\n\tif x >= 0x1F:\n\t\treturn {'a': [1, 2.5e-3]}  # ok\r\n\n\n    pass\n",
    "blanks": "  a   b\n\n\n  c \t \n d      ",
    "control": "\x00\x01\x1c\x1d\x1e\x1f\x7f\x80\x85\xa0\xad a",
    "special": f"a{END_OF_TEXT} b {END_OF_TEXT}",
    "empty": "",
    "long word": "antidisestablishmentarianism" * 40 + "=" * 1000,
}


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the checkout")
    return path


@cache
def trained(engine=BPE):
    return engine.train(TEXT, 1024)


@cache
def disagreeing():
    """The characters that `regex` and tiktoken class differently, by asking both about each.

    tiktoken drops what its pattern does not match, so a pattern of one class keeps that class.
    """
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    different = set()
    for one_class in (r"\p{L}", r"\p{N}", r"\s"):
        kept = tiktoken.Encoding(
            "class", pat_str=one_class, mergeable_ranks=single_bytes, special_tokens={}
        )
        tiktoken_class = kept.decode(kept.encode_ordinary(characters))
        different |= set(tiktoken_class) ^ set(regex.findall(one_class, characters))
    return different


def agreeing(text):
    return "".join(character for character in text if character not in disagreeing())


PROSE = st.lists(
    st.sampled_from(
        ["the", "The", " ", "\n", "'", "s", "'ll", "9", "é", "。", "漢", "\t", "=", "🙂"]
    )
).map("".join)
TEXTS = st.one_of(st.text(), PROSE)


def join_everywhere(ids, pair, token):
    joined = []
    for i in ids:
        if joined and (joined[-1], i) == pair:
            joined[-1] = token
        else:
            joined.append(i)
    return joined


def train_naively(text, number):
    """Sennrich et al. 2016, algorithm 1: count every pair anew for each merge."""
    words = [list(word.encode().translate(BYTE_IDS)) for word in PATTERN.findall(text)]
    merges = []
    while len(merges) < number:
        counts = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = [join_everywhere(word, best, 256 + len(merges)) for word in words]
        merges.append(best)
    return merges


# Training


def test_training_by_hand():
    """aaabdaaabac: the a's overlap (4 pairs aa), then ab ties with aa·a and has the lower ids."""
    tokenizer = BPE.train("aaabdaaabac", 260, special_tokens=())
    assert tokenizer.tokens[256:] == (b"aa", b"ab", b"aaab", b"ac")
    assert tokenizer.merges == ((64, 64), (64, 65), (256, 257), (64, 66))
    assert tokenizer.encode("aaabdaaabac") == [258, 67, 258, 259]
    assert tokenizer.encode("aaac baab") == [256, 259, 220, 65, 256, 65]


@settings(deadline=None)
@given(st.one_of(st.text("ab"), st.text("abc 1'\né"), TEXTS), st.integers(0, 40))
def test_training_is_the_naive_algorithm(text, number):
    words = Counter(PATTERN.findall(text))
    assert bpe.learn_merges(words, number) == train_naively(text, number)


def test_training_on_prose_is_the_naive_algorithm():
    assert list(BPE.train(TEXT[:20000], 400).merges) == train_naively(TEXT[:20000], 143)


def test_a_smaller_vocabulary_begins_a_larger_one():
    assert BPE.train(TEXT, 300).merges == trained().merges[:43]


def test_training_is_hugging_faces():
    tokenizers = peer("tokenizers")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1023, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([TEXT], trainer)
    merges = json.loads(theirs.to_str())["model"]["merges"]
    byte_of = {theirs.id_to_token(i): BYTES[i : i + 1] for i in range(256)}
    joined = [b"".join(byte_of[symbol] for symbol in "".join(pair)) for pair in merges]
    assert joined == list(trained().tokens[256:-1])


def test_training_time():
    """A megabyte to 1,024 tokens within 20 s; here it takes about one."""
    text = (TEXT * 2)[:1_000_000]
    start = time.perf_counter()
    assert BPE.train(text, 1024).vocabulary_size == 1024
    assert time.perf_counter() - start < 20


def test_long_words_are_not_quadratic():
    dna = "".join(np.random.default_rng(0).choice(list("ACGT"), 100_000))
    start = time.perf_counter()
    tokenizer = BPE.train(dna, 512)
    assert tokenizer.decode(tokenizer.encode(dna)) == dna
    assert time.perf_counter() - start < 20


def test_a_short_text_says_how_much_it_can_fill():
    with pytest.raises(InputError, match="this text of 11 characters can only fill 264"):
        BPE.train("aaabdaaabac", 1024)
    assert BPE.train("aaabdaaabac").vocabulary_size == 264
    assert BPE.train("aaabdaaabac", 264).encode("aaabdaaabac") == [262]
    assert BPE.train("", 257).encode("é") == list("é".encode().translate(BYTE_IDS))


# Encoding and decoding


def test_bytes_are_numbered_as_in_gpt2():
    tokenizer = BPE((), ())
    assert tokenizer.encode("!~ aé\n") == [0, 93, 220, 64, 127, 102, 198]
    assert sorted(tokenizer.tokens) == [bytes([byte]) for byte in range(256)]


@ENGINES
@settings(deadline=None)  # the first call trains
@given(text=TEXTS)
def test_round_trip(engine, text):
    ids = trained(engine).encode(text)
    assert trained(engine).decode(ids) == text
    assert trained(engine).decode_bytes(np.array(ids, int)) == text.encode()


@settings(deadline=None)
@given(st.binary(), st.lists(st.integers(0, 1023)))
def test_decoding_is_exact_on_any_bytes_and_ids(data, ids):
    tokenizer = trained()
    assert tokenizer.decode_bytes(list(data.translate(BYTE_IDS))) == data
    assert tokenizer.decode_bytes(ids) == b"".join(tokenizer.tokens[i] for i in ids)
    assert tokenizer.decode(ids) == tokenizer.decode_bytes(ids).decode(errors="replace")


@settings(deadline=None)
@given(TEXTS)
def test_encoding_joins_the_pair_learnt_first(text):
    ids = []
    for word in PATTERN.findall(text):
        row = list(word.encode().translate(BYTE_IDS))
        for n, pair in enumerate(trained().merges):
            row = join_everywhere(row, pair, 256 + n)
        ids += row
    assert trained().encode(text) == ids


def test_the_memory_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr(bpe, "CACHE_WORDS", 3)
    tokenizer, text = BPE(trained().merges), "a" * 100 + "\n" + TEXT[:3000] * 2
    assert tokenizer.encode(text) == trained().encode(text)
    assert 0 < len(tokenizer._cache) <= 3
    assert "a" * 100 not in tokenizer._cache


@ENGINES
def test_a_tokenizer_cannot_be_changed_but_copied(engine):
    tokenizer = engine([list(pair) for pair in trained().merges])
    ids = tokenizer.encode(TEXT[:1000])
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokenizer.merges = ()
    assert len(repr(tokenizer)) < 100
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other == tokenizer and hash(other) == hash(tokenizer)
        assert other.encode(TEXT[:1000]) == ids
    ids.clear()
    assert tokenizer.encode(TEXT[:1000])


# The twin


@settings(max_examples=300, deadline=None)
@given(TEXTS.map(agreeing))
def test_the_twin_gives_the_same_ids(text):
    assert trained(AcceleratedBPE).encode(text) == trained().encode(text)


@pytest.mark.parametrize("text", SAMPLES.values(), ids=SAMPLES)
def test_the_twin_gives_the_same_ids_on_samples(text):
    assert set(text).isdisjoint(disagreeing())
    assert trained(AcceleratedBPE).encode(text) == trained().encode(text)


def test_the_twin_gives_the_same_ids_on_every_character_both_class_alike():
    characters = agreeing(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    for text in (characters, " ".join(characters[::7]), "\n a".join(characters[::31])):
        assert trained(AcceleratedBPE).encode(text) == trained().encode(text)


@pytest.mark.parametrize("blanks", [9_999, 10_000, 10_001, 10_002])
@pytest.mark.parametrize("after", ["", "x", "\n"])
def test_the_twin_gives_the_same_ids_for_long_runs_of_blanks(blanks, after):
    for blank in (" ", "\n"):
        text = f"a{blank * blanks}{after}" * 2
        assert trained(AcceleratedBPE).encode(text) == trained().encode(text)


def test_the_twin_takes_a_run_of_blanks_on_which_tiktoken_panics():
    text = "a" + " " * 1_100_000 + "x"
    assert trained(AcceleratedBPE).encode(text) == trained().encode(text)


# Special tokens


@ENGINES
def test_special_tokens_are_ordinary_text_unless_allowed(engine):
    tokenizer = trained(engine)
    text = f"the end {END_OF_TEXT} of\n{END_OF_TEXT}"
    assert tokenizer.special_ids == {END_OF_TEXT: 1023}
    assert 1023 not in tokenizer.encode(text)
    for allowed in ("all", [END_OF_TEXT], {END_OF_TEXT}):
        ids = tokenizer.encode(text, allowed_special=allowed)
        assert ids.count(1023) == 2 and tokenizer.decode(ids) == text
    expected = trained(AcceleratedBPE)._encoding.encode(text, allowed_special={END_OF_TEXT})
    assert tokenizer.encode(text, allowed_special="all") == expected
    with pytest.raises(InputError, match="allowed_special has '<|pad|>'"):
        tokenizer.encode(text, allowed_special=["<|pad|>"])


@ENGINES
def test_of_two_special_tokens_the_longer_is_meant(engine):
    tokenizer = engine((), ("<a>", "<a><b>", "[SEP]"))
    ids = tokenizer.encode("<a><b><a>[SEP][", allowed_special="all")
    assert ids == [257, 256, 258, BYTES.index(b"[")]
    ordinary = tokenizer.encode("<a>")
    assert len(ordinary) == 3
    assert tokenizer.encode("<a>[SEP]", allowed_special=["[SEP]"]) == [*ordinary, 258]
    assert tokenizer.encode("<a><b>", allowed_special=["<a>"])[0] == 256
    assert tokenizer.decode(ids) == "<a><b><a>[SEP]["


@pytest.mark.parametrize("name", ["pad", "", "<>", " ", "'s", "<|a b|>", "<|é|>", "<|\n|>", 5])
def test_a_special_token_cannot_be_an_ordinary_one(name):
    with pytest.raises(InputError, match=regex.escape(f"the special token {name!r}")):
        BPE((), (name,))
    with pytest.raises(InputError, match="the special token"):
        BPE.train(TEXT, 1024, special_tokens=(name,))


# Files


@ENGINES
def test_save_and_load(engine, tmp_path):
    tokenizer = engine(trained().merges, ("<|b|>", "<|a|>"))
    tokenizer.save(tmp_path / "new" / "folder")
    tokenizer.save(tmp_path / "again")
    (tmp_path / "again" / "vocab.json").rename(tmp_path / "again" / "encoder.json")
    (tmp_path / "again" / "merges.txt").rename(tmp_path / "again" / "vocab.bpe")
    for folder in ("new/folder", "again"):
        assert engine.load(tmp_path / folder) == tokenizer
        assert len(list((tmp_path / folder).iterdir())) == 2
    for one, other in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        data = (tmp_path / "new" / "folder" / one).read_bytes()
        assert data == (tmp_path / "again" / other).read_bytes()
        assert b"\r" not in data and data.endswith(b"\n") and "Ġ".encode() in data


def test_a_save_that_fails_leaves_the_old_files(tmp_path, monkeypatch):
    trained().save(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        BPE(()).save(tmp_path)
    assert BPE.load(tmp_path) == trained()


def test_windows_line_ends_are_read(tmp_path):
    trained().save(tmp_path)
    path = tmp_path / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert BPE.load(tmp_path) == trained()


def test_hugging_face_reads_the_files(tmp_path):
    tokenizers = peer("tokenizers")
    trained().save(tmp_path)
    theirs = tokenizers.ByteLevelBPETokenizer.from_file(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    assert theirs.get_vocab_size() == 1024
    for text in (*SAMPLES.values(), TEXT[:50000]):
        assert theirs.encode(text).ids == trained().encode(text)


@settings(deadline=None)
@given(st.data())
def test_a_file_cut_short_is_never_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    tokenizer = BPE(trained().merges[:40], data.draw(st.sampled_from([(), ("<a>", "[b]")])))
    tokenizer.save(folder)
    path = folder / data.draw(st.sampled_from(["merges.txt", "vocab.json"]))
    whole = path.read_bytes()
    length = data.draw(st.integers(0, len(whole) - 2))
    path.write_bytes(whole[:length])
    with pytest.raises(CheckpointError, match=regex.escape(str(folder))):
        BPE.load(folder)


TORN = {
    "no merges": ("merges.txt", lambda text: None, "has neither merges.txt nor vocab.bpe"),
    "no vocabulary": ("vocab.json", lambda text: None, "has neither vocab.json nor encoder.json"),
    "not UTF-8": ("merges.txt", lambda text: text.encode("utf-16"), "is not UTF-8 at byte 0"),
    "three tokens": ("merges.txt", lambda text: text.replace("a b", "a b c"), "line 3 is 'a b c'"),
    "unknown token": ("merges.txt", lambda text: text.replace("a b", "aaa b"), "line 3 is 'aaa b'"),
    "merged twice": ("merges.txt", lambda text: text + "a a\n", "line 6 is 'a a'"),
    "one more merge": ("merges.txt", lambda text: text + "b b\n", "token 'bb' no id"),
    "another order": ("vocab.json", lambda text: text.replace("256", "0"), "token 'aa' the id 0"),
    "not JSON": ("vocab.json", lambda text: text[:-5], "is not JSON"),
    "a list": ("vocab.json", lambda text: "[]", "must map each token to its id"),
    "a float": ("vocab.json", lambda text: text.replace("256", "2.5"), "must map each token"),
    "another's": ("vocab.json", lambda text: text.replace('"aa"', '"zz"'), "has the token 'zz'"),
}


@ENGINES
@pytest.mark.parametrize(("name", "tear", "message"), TORN.values(), ids=TORN)
def test_torn_files(engine, name, tear, message, tmp_path):
    engine.train("aaabdaaabac", 261).save(tmp_path)
    text = (tmp_path / name).read_text(encoding="utf-8")
    torn = tear(text)
    (tmp_path / name).unlink()
    if torn is not None:
        data = torn.encode() if isinstance(torn, str) else torn
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        engine.load(tmp_path)
    assert str(tmp_path) in str(error.value)


# Bad input


@ENGINES
def test_bad_input(engine):
    tokenizer = trained(engine)
    for error, message, call in (
        (DtypeError, "text is of type bytes", lambda: tokenizer.encode(b"a")),
        (DtypeError, "text is of type NoneType", lambda: tokenizer.encode(None)),
        (DtypeError, "text is of type list", lambda: engine.train(["a"], 300)),
        (InputError, r"text\[1\] is U\+D83D", lambda: tokenizer.encode("a\ud83d")),
        (InputError, r"text\[0\] is U\+DC00", lambda: engine.train("\udc00", 300)),
        (InputError, "vocabulary is 256, and must be at least 257", lambda: engine.train("a", 256)),
        (DtypeError, "vocabulary is 300.0", lambda: engine.train("a", 300.0)),
        (
            InputError,
            r"ids\[1\] is 1024, outside .* \[0, 1024\)",
            lambda: tokenizer.decode([3, 1024]),
        ),
        (InputError, r"ids\[0\] is -1, outside", lambda: tokenizer.decode(np.array([-1]))),
        (InputError, r"ids\[0\] is 8589934597", lambda: tokenizer.decode_bytes([2**33 + 5])),
        (DtypeError, r"ids\[0\] is of type float", lambda: tokenizer.decode(np.ones(3))),
        (DtypeError, r"ids\[0\] is of type bool", lambda: tokenizer.decode([True])),
        (DtypeError, r"ids\[0\] is of type list", lambda: tokenizer.decode(np.ones((2, 3), int))),
        (DtypeError, "ids is of type int", lambda: tokenizer.decode(5)),
        (DtypeError, "ids is of type str", lambda: tokenizer.decode("abc")),
        (InputError, r"merges\[0\] is \(3, 256\)", lambda: engine(((3, 256),))),
        (InputError, "two tokens are b'!!'", lambda: engine(((0, 0), (0, 0)))),
        (InputError, "two tokens are b'<a>'", lambda: engine((), ("<a>", "<a>"))),
    ):
        with pytest.raises(error, match=message):
            call()


def test_incomplete_characters():
    tokenizer = trained()
    ids = list("é".encode().translate(BYTE_IDS))
    assert tokenizer.decode(ids) == "é"
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode_bytes(iter(ids[:1])) == b"\xc3"


# The published vocabulary


@cache
def published(engine):
    return engine.load(shared("gpt2_bpe"))


@pytest.fixture
def openai(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared("tiktoken")))
    return tiktoken.get_encoding("gpt2")


def test_the_published_vocabulary(openai):
    tokenizer = published(BPE)
    assert tokenizer.vocabulary_size == openai.n_vocab == 50257
    assert tokenizer.special_ids == {END_OF_TEXT: 50256} == openai._special_tokens
    ids = {token: i for i, token in enumerate(tokenizer.tokens[:50256])}
    assert ids == openai._mergeable_ranks


@ENGINES
def test_published_ids_equal_openais(engine, openai):
    tokenizer = published(engine)
    shakespeare = shared("tinyshakespeare/input.txt").read_text(encoding="utf-8")
    for text in (*SAMPLES.values(), shakespeare[:200_000], TEXT[:200_000]):
        assert tokenizer.encode(text) == openai.encode_ordinary(text)
    text = SAMPLES["special"]
    expected = openai.encode(text, allowed_special="all")
    assert tokenizer.encode(text, allowed_special="all") == expected
    assert tokenizer.decode(expected) == text


@settings(max_examples=300, deadline=None)
@given(TEXTS.map(agreeing))
def test_published_ids_equal_openais_on_any_text(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared("tiktoken")))
        expected = tiktoken.get_encoding("gpt2").encode_ordinary(text)
    assert published(BPE).encode(text) == published(AcceleratedBPE).encode(text) == expected


def test_the_published_files_come_back(tmp_path):
    published(BPE).save(tmp_path)
    merges = shared("gpt2_bpe/vocab.bpe").read_text(encoding="utf-8")
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8") == merges
    vocabulary = json.loads(shared("gpt2_bpe/encoder.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == vocabulary
    lines = merges.splitlines(keepends=True)
    (tmp_path / "merges.txt").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(CheckpointError, match="has the token 'Ġgazed', which no line"):
        BPE.load(tmp_path)
