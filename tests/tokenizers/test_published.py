import json
import os
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.errors import CheckpointError, InputError
from reference.tokenizers import (
    BPE,
    CLIP,
    Characters,
    WordPiece,
    clip,
    load_published,
    load_tokenizer,
)
from reference.tokenizers.bpe import END_OF_TEXT, PATTERN
from reference.tokenizers.byte_fallback_files import BYTE_NAMES, PREFIXES
from reference.tokenizers.clip_files import CUTS, NAMES, NORMALIZER
from reference.tokenizers.unigram import METASPACE
from reference.tokenizers.vocabulary_files import BYTES, shown
from reference.tokenizers.wordpiece import SPECIAL
from tests.peers import peer
from tests.tokenizers.texts import NUMBERS, PROSE, SAMPLES, disagreeing, drawn_texts, shared

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LETTERS = r"\p{L}+|\P{L}"
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")


def every_way(tokens):
    """Merges as Hugging Face makes them of ranks: all pairs that make a token, by its rank."""
    ids, merges = {token: i for i, token in enumerate(tokens)}, []
    for token in tokens[256:]:
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += sorted((ids[a], ids[b]) for a, b in halves if a in ids and b in ids)
    return merges


@cache
def llama3_tokens():
    """A vocabulary in which not every token can be made by merges, as Llama 3's."""
    learnt = BPE.train(PROSE[:100_000], 1256, special_tokens=(), pattern=LLAMA3_PATTERN).tokens
    unreachable = (b" antidisestablishmentarianism", "漢字テキスト".encode(), b" function of")
    return (*learnt, *unreachable)


def hugging_faces(tokens, merges, special, pattern, whole_words):
    """A byte-level BPE of the library, with GPT-2's pattern where none is given."""
    t = peer("tokenizers")
    names = [shown(token) for token in tokens]
    theirs = t.Tokenizer(
        t.models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[(names[left], names[right]) for left, right in merges],
            ignore_merges=whole_words,
        )
    )
    theirs.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern:
        split = t.pre_tokenizers.Split(t.Regex(pattern), "isolated")
        bytes_only = t.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        theirs.pre_tokenizer = t.pre_tokenizers.Sequence([split, bytes_only])
    theirs.decoder = t.decoders.ByteLevel()
    theirs.add_special_tokens([t.AddedToken(name, normalized=False) for name in special])
    return theirs


@pytest.fixture
def llama3(tmp_path):
    theirs = hugging_faces(
        llama3_tokens(), every_way(llama3_tokens()), LLAMA3_SPECIAL, LLAMA3_PATTERN, True
    )
    theirs.save(str(tmp_path / "tokenizer.json"))
    return theirs


# tokenizer.json


@NUMBERS
def test_llama_3_is_read_with_its_pattern_and_whole_words(number, llama3, tmp_path):
    tokenizer = load_published(tmp_path)
    assert type(tokenizer) is BPE and tokenizer == BPE.load(tmp_path)
    assert tokenizer.pattern == LLAMA3_PATTERN and tokenizer.whole_words
    assert tokenizer.special_tokens == LLAMA3_SPECIAL and tokenizer.vocabulary_size == 1262
    texts = [" antidisestablishmentarianism 漢字テキスト function of", *SAMPLES.values()]
    texts += drawn_texts(number, disagreeing())
    for text, encoding in zip(texts, llama3.encode_batch(texts), strict=True):
        ids = tokenizer.encode(text, allowed_special="all")
        assert ids == encoding.ids, text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode(texts[0])[0] == 1256


def test_what_was_read_is_saved_so_that_others_read_it(llama3, tmp_path):
    tokenizer = load_published(tmp_path)
    tokenizer.save(tmp_path / "again")
    assert os.listdir(tmp_path / "again") == ["tokenizer.json"]
    assert load_tokenizer(tmp_path / "again") == tokenizer
    again = peer("tokenizers").Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    for text in [*SAMPLES.values(), *drawn_texts(200)]:
        assert again.encode(text).ids == llama3.encode(text).ids


@pytest.mark.parametrize("form", ["new", "old"])
def test_gpt_2_is_read(form, tmp_path):
    tokenizer = BPE.load(shared("gpt2_bpe"))
    ordinary = tokenizer.tokens[:-1]
    theirs = hugging_faces(ordinary, tokenizer.merges, [END_OF_TEXT], None, False)
    path = tmp_path / "tokenizer.json"
    theirs.save(str(path))
    if (
        form == "old"
    ):  # merges as text, no model.type, no use_regex, <|endoftext|> in the vocabulary
        found = json.loads(path.read_text(encoding="utf-8"))
        model = found["model"]
        del model["type"], found["pre_tokenizer"]["use_regex"]
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
        model["vocab"][END_OF_TEXT] = 50256
        path.write_text(json.dumps(found), encoding="utf-8")
    assert load_published(tmp_path) == tokenizer
    assert load_published(tmp_path).vocabulary is None


def small(tmp_path):
    """The path and the content of a small byte-level tokenizer.json."""
    BPE([(64, 65), (256, 66)], ("<|a|>",), LETTERS).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    return path, json.loads(path.read_text(encoding="utf-8"))


CHANGES = {
    "Unigram's neighbour": (
        ("model", "type"),
        "WordLevel",
        "model of type 'WordLevel', which none",
    ),
    "no type": (("model", "type"), 5, "a model of type 5"),
    "normalizer": (("normalizer",), {"type": "NFC"}, 'normalizer is {"type": "NFC"}, which this'),
    "cut": (("pre_tokenizer", "pretokenizers", 0, "behavior"), "Removed", "pre_tokenizer is "),
    "prefix": (("pre_tokenizer", "pretokenizers", 1, "add_prefix_space"), True, "pre_tokenizer"),
    "other cut": (("pre_tokenizer",), {"type": "Whitespace"}, "a model of type 'BPE', which none"),
    "dropout": (("model", "dropout"), 0.1, "model.dropout is 0.1"),
    "pattern": (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "("}, "no regular exp"),
    "group": (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "(a)"}, "that captures"),
    "string": (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"String": "a"}, "pre_tokenizer"),
    "special": (("added_tokens", 0, "content"), "word", "the special token 'word' could be"),
    "id": (("added_tokens", 0, "id"), 300, "has the id 300, and must have 258"),
    "single": (("added_tokens", 0, "single_word"), True, "an added token is "),
    "no list": (("added_tokens",), 5, "has no model with a vocab and merges"),
    "vocab": (("model", "vocab"), 5, "has no model with a vocab and merges"),
    "merges": (("model", "merges"), None, "has no model with a vocab and merges"),
    "model": (("model",), [], "has no model with a vocab and merges"),
    "merge": (("model", "merges", 0), ["a"], r"merges\[0\] is \['a'\]"),
    "a hole": (("model", "vocab"), {"漢": 0}, "must have 1"),
    "few": (("model", "vocab"), {"!": 0}, "must have|has no"),
}


@pytest.mark.parametrize(("keys", "value", "message"), CHANGES.values(), ids=CHANGES)
def test_what_is_not_followed_is_named(keys, value, message, tmp_path):
    path, found = small(tmp_path)
    place = found
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as error:
        load_published(tmp_path)
    assert str(path) in str(error.value)


def numbered(names):
    return {name: i for i, name in enumerate(names)}


WHOLE = {
    "BPE": None,
    "WordPiece": {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "added_tokens": [{"id": 1, "content": "[UNK]"}],
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": numbered([*SPECIAL, "a"]),
        },
    },
    "CLIP": {
        "normalizer": NORMALIZER,
        "pre_tokenizer": CUTS[0],
        "added_tokens": [{"id": 513, "content": clip.START}, {"id": 514, "content": clip.END}],
        "model": {
            "type": "BPE",
            "end_of_word_suffix": "</w>",
            "vocab": numbered([*NAMES, "!!", *clip.SPECIAL]),
            "merges": [["!", "!"]],
        },
    },
    "ByteFallback": {
        "normalizer": PREFIXES["prepend"][0],
        "added_tokens": [{"id": 0, "content": "<unk>"}],
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": numbered(["<unk>", *BYTE_NAMES, "a", "aa"]),
            "merges": ["a a"],
        },
    },
    "Unigram": {
        "pre_tokenizer": METASPACE,
        "added_tokens": [{"id": 0, "content": "<unk>"}],
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]},
    },
}
ANYTHING = st.sampled_from([None, 5, -1, 0.5, "", "x", [], ["x"], [5, 5], {}, {"a": 1}, True])


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_stands_in_the_file_it_is_read_or_refused(kind, tmp_path_factory, data):
    """Turns red if a part of the wrong kind ends in a TypeError, KeyError or AttributeError."""
    path, found = small(tmp_path_factory.mktemp("any"))
    found = json.loads(json.dumps(WHOLE[kind])) or found
    path.write_text(json.dumps(found), encoding="utf-8")
    assert type(load_tokenizer(path.parent)).__name__ == kind
    place = found
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        inside = place[key]
        if not isinstance(inside, (dict, list)) or not inside or data.draw(st.booleans()):
            break
        place = inside
    place[key] = data.draw(ANYTHING)
    path.write_text(json.dumps(found), encoding="utf-8")
    try:
        assert load_tokenizer(path.parent).encode("a")
    except CheckpointError as error:
        assert str(path) in str(error)


def test_words_that_the_pattern_leaves_out_are_words_too():
    tokenizer = BPE((), (), r"[a-z]+")
    assert tokenizer.words("ab, cd\n") == ["ab", ", ", "cd", "\n"]
    assert tokenizer.decode(tokenizer.encode("1ab, cd")) == "1ab, cd"


@given(st.text(), st.sampled_from([r"[a-z]+", r"\s+", PATTERN.pattern, LLAMA3_PATTERN, r"x*"]))
def test_no_pattern_loses_a_character(text, pattern):
    """Turns red if what lies between two matches, or after the last, is dropped."""
    assert "".join(BPE((), (), pattern).words(text)) == text


def test_a_vocabulary_must_be_of_bytes_and_of_what_merges_make():
    tokens = tuple(BYTES[i : i + 1] for i in range(256))
    for message, call in (
        ("must begin with the 256 bytes", lambda: BPE((), vocabulary=tokens[1:])),
        ("must begin with the 256 bytes", lambda: BPE((), vocabulary=(b"ab", *tokens))),
        (r"merges\[0\] is \(5, 256\)", lambda: BPE([(5, 256)], vocabulary=tokens)),
        (r"merges\[0\] makes b'\"#', which is not", lambda: BPE([(1, 2)], vocabulary=tokens)),
        ("join one pair twice", lambda: BPE([(1, 2)] * 2, vocabulary=(*tokens, b'"#'))),
        ("two tokens are b'!'", lambda: BPE((), vocabulary=(*tokens, b"!"))),
        (r"the pattern '\(' is no regular", lambda: BPE((), pattern="(")),
        ("the pattern 5 is no regular", lambda: BPE((), pattern=5)),
        (r"'\(a\)' has a group that captures", lambda: BPE((), pattern="(a)")),
    ):
        with pytest.raises(InputError, match=message):
            call()


# Folders


def test_whichever_tokenizer_lies_in_a_folder_is_loaded(tmp_path):
    bpe, clip = BPE.train("the cat the hat", 262), CLIP([(39, 256 + 78)])
    words = WordPiece((*SPECIAL, "a"))
    for tokenizer in (bpe, clip, words):
        folder = tmp_path / type(tokenizer).__name__
        tokenizer.save(folder)
        assert load_published(folder) == load_tokenizer(folder) == tokenizer
    (tmp_path / "BPE" / "merges.txt").rename(tmp_path / "BPE" / "vocab.bpe")
    (tmp_path / "BPE" / "vocab.json").rename(tmp_path / "BPE" / "encoder.json")
    assert load_published(tmp_path / "BPE") == bpe


def test_tokenizer_json_goes_before_the_other_files(tmp_path):
    """As in folders of Hugging Face, where all of them say the same."""
    BPE.train("the cat the hat", 262).save(tmp_path)
    tokenizer = BPE.train("the cat the hat", 262, pattern=LETTERS)
    tokenizer.save(tmp_path)
    assert load_published(tmp_path) == BPE.load(tmp_path) == tokenizer
    with pytest.raises(InputError, match="has a tokenizer.json, which would be read in place"):
        BPE.train("the cat the hat", 262).save(tmp_path)
    assert load_published(tmp_path) == tokenizer


def test_a_folder_with_none_or_with_two_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            CheckpointError, match=f"{folder} has no tokenizer, none of tokenizer.js"
        ):
            load_published(folder)
    small(tmp_path)
    Characters("ab").save(tmp_path)
    with pytest.raises(CheckpointError, match="two tokenizers, tokenizer.json and characters.json"):
        load_tokenizer(tmp_path)
