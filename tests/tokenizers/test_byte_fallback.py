import builtins
import copy
import dataclasses
import json
import os
import pickle
import sys
import time
import types
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers import ByteFallback, load_tokenizer
from reference.tokenizers.byte_fallback_files import BYTE_NAMES, PREFIXES, merges_by_score
from tests.peers import peer
from tests.tokenizers.texts import NUMBERS, PROSE, SAMPLES, TIMES, drawn_texts

SPECIAL = ("<unk>", "<s>", "</s>")
FIRST = (*SPECIAL, *BYTE_NAMES)
# From 259 on; every way to make "▁the" of two others is a merge, as in Llama's.
NAMES = (*FIRST, "▁t", "he", "▁the", "▁▁", "th", "▁", "t", "h", "e", "é")
IDS = {name: i for i, name in enumerate(NAMES)}
MERGES = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁"), ("t", "h")]
SMALL = ByteFallback(NAMES, [(IDS[a], IDS[b]) for a, b in MERGES])
A = IDS["<0x61>"]


def with_prefix(prefix):
    return ByteFallback(NAMES, SMALL.merges, SPECIAL, prefix)


@cache
def trained():
    """Names by id and merges, every way to make each piece, learnt by Hugging Face's trainer."""
    tokenizers = peer("tokenizers")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500, special_tokens=list(FIRST), show_progress=False
    )
    theirs.train_from_iterator([PROSE[:100_000]], trainer)
    ids = theirs.get_vocab()
    pieces = {name: i for name, i in ids.items() if i >= len(FIRST)}
    return tuple(sorted(ids, key=ids.get)), merges_by_score(pieces, lambda i: -i)


def hugging_faces(prefix):
    """A tokenizer as transformers builds Llama 2's, or as its published file says ("prepend")."""
    t = peer("tokenizers")
    names, merges = trained()
    theirs = t.Tokenizer(
        t.models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[(names[left], names[right]) for left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if prefix == "prepend":
        normalizers = [t.normalizers.Prepend("▁"), t.normalizers.Replace(" ", "▁")]
        theirs.normalizer = t.normalizers.Sequence(normalizers)
    else:
        theirs.pre_tokenizer = t.pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    strip = [] if prefix == "never" else [t.decoders.Strip(" ", 1, 0)]
    parts = [t.decoders.Replace("▁", " "), t.decoders.ByteFallback(), t.decoders.Fuse(), *strip]
    theirs.decoder = t.decoders.Sequence(parts)
    theirs.add_special_tokens([t.AddedToken(name, normalized=False) for name in SPECIAL])
    return theirs


@cache
def ours(prefix="prepend"):
    return ByteFallback(*trained(), SPECIAL, prefix)


# Encoding and decoding


def test_a_text_is_characters_and_bytes_where_they_are_unknown():
    assert SMALL.encode("the") == [IDS["▁the"]]
    assert SMALL.encode("a the") == [IDS["▁"], A, IDS["▁the"]]
    assert SMALL.encode("éa") == [IDS["▁"], IDS["é"], A]
    assert SMALL.encode("漢") == [IDS["▁"], *(IDS[f"<0x{b:02X}>"] for b in "漢".encode())]
    assert SMALL.encode("th") == [IDS["▁t"], IDS["h"]]
    assert SMALL.encode("tthe") == [IDS["▁t"], IDS["t"], IDS["he"]]
    assert SMALL.encode("   the") == [IDS["▁▁"], IDS["▁"], IDS["▁the"]]
    assert SMALL.encode("") == [] and SMALL.decode([]) == ""


def test_a_token_stands_for_bytes():
    assert SMALL.tokens[A] == b"a" and SMALL.tokens[IDS["▁the"]] == b" the"
    assert SMALL.tokens[IDS["é"]] == "é".encode() and SMALL.tokens[1] == b"<s>"
    assert SMALL.vocabulary_size == len(SMALL.tokens) == len(NAMES)
    ids = SMALL.encode("a é漢")
    assert SMALL.decode_bytes(np.array(ids)) == " a é漢".encode()
    assert SMALL.decode(ids[:-1]) == "a é\ufffd"


def test_where_a_blank_is_put_before():
    t, blank, blanks, the = (IDS[name] for name in ("▁t", "▁", "▁▁", "▁the"))
    encoded = {
        prefix: [
            with_prefix(prefix).encode(text, allowed_special="all")
            for text in ("t", " t", "t<s>t", "<s>t")
        ]
        for prefix in PREFIXES
    }
    bare = IDS["t"]
    assert encoded == {
        "prepend": [[t], [blank, t], [t, 1, t], [1, t]],
        "always": [[t], [t], [t, 1, t], [1, t]],
        "first": [[t], [t], [t, 1, bare], [1, bare]],
        "never": [[bare], [t], [bare, 1, bare], [1, bare]],
    }
    assert with_prefix("never").decode([the]) == " the" and SMALL.decode([the]) == "the"


@given(st.one_of(st.text(), st.text("the ▁é漢\n")))
def test_round_trip(text):
    """Turns red if the blank before is not taken off again, or a byte is lost."""
    shown = text.replace("▁", " ")
    for prefix in ("prepend", "never"):
        tokenizer = with_prefix(prefix)
        assert tokenizer.decode(tokenizer.encode(text)) == shown
    assert with_prefix("first").decode(with_prefix("first").encode(text)) == shown.removeprefix(" ")


@given(st.text("the a▁\n"), st.booleans())
def test_encoding_joins_the_pair_learnt_first(text, over_a_blank):
    """Turns red if a text is cut at blanks though a piece goes over one, or in another place."""
    names = (*NAMES, "e▁", "e▁t") if over_a_blank else NAMES
    pairs = [*MERGES, ("e", "▁"), ("e▁", "t")] if over_a_blank else MERGES
    tokenizer = ByteFallback(names, [(names.index(a), names.index(b)) for a, b in pairs])
    row = [
        names.index(c) if c in names else names.index(f"<0x{ord(c):02X}>")
        for c in ("▁" + text.replace(" ", "▁") if text else "")
    ]
    while found := [(n, i) for i, p in enumerate(zip(row, row[1:], strict=False))
                    for n, m in enumerate(tokenizer.merges) if m == p]:  # fmt: skip
        _, i = min(found)
        row[i : i + 2] = [names.index(names[row[i]] + names[row[i + 1]])]
    assert tokenizer.encode(text) == row


def test_special_tokens_are_ordinary_text_unless_allowed():
    text = "the</s>the"
    assert SMALL.special_ids == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert 2 not in SMALL.encode(text)
    assert SMALL.encode(text, allowed_special="all") == [IDS["▁the"], 2, IDS["▁the"]]
    assert SMALL.encode("<0x61>")[1:4] == [IDS["<0x3C>"], IDS["<0x30>"], IDS["<0x78>"]]
    with pytest.raises(InputError, match="allowed_special has '<a>'"):
        SMALL.encode(text, allowed_special=["<a>"])


def test_a_tokenizer_cannot_be_changed_but_copied():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.merges = ()
    for other in (copy.deepcopy(SMALL), pickle.loads(pickle.dumps(SMALL))):
        assert other == SMALL and hash(other) == hash(SMALL) and len(repr(other)) < 100
        assert other.encode("the") == [IDS["▁the"]]
    assert SMALL != with_prefix("first")


@TIMES
def test_a_megabyte_of_one_character_takes_seconds(times):
    for character in "e 漢":
        text = character * (times // len(character.encode()))
        start = time.process_time()
        assert ours().decode(ours().encode(text)) == text
        assert time.process_time() - start < times / 10**5


# Against Hugging Face


@pytest.mark.parametrize("prefix", PREFIXES)
@NUMBERS
def test_ids_and_texts_equal_hugging_faces(number, prefix):
    theirs = hugging_faces(prefix)
    texts = [*SAMPLES.values(), *drawn_texts(number)]
    for text, encoding in zip(texts, theirs.encode_batch(texts), strict=True):
        ids = ours(prefix).encode(text, allowed_special="all")
        assert ids == encoding.ids, text
        assert ours(prefix).decode(ids) == theirs.decode(ids, skip_special_tokens=False), text


@pytest.mark.parametrize("prefix", PREFIXES)
def test_tokenizer_json_goes_both_ways(prefix, tmp_path):
    theirs = hugging_faces(prefix)
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert ByteFallback.load(tmp_path) == load_tokenizer(tmp_path) == ours(prefix)
    ours(prefix).save(tmp_path / "again")
    again = peer("tokenizers").Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    for text in [*SAMPLES.values(), PROSE[:20_000]]:
        assert again.encode(text).ids == theirs.encode(text).ids
    assert ByteFallback.load(tmp_path / "again") == ours(prefix)
    assert os.listdir(tmp_path / "again") == ["tokenizer.json"]


def test_transformers_tokenizer_of_llama_is_read(tmp_path):
    names, merges = trained()
    theirs = peer("transformers").LlamaTokenizer(
        vocab={name: i for i, name in enumerate(names)},
        merges=[(names[left], names[right]) for left, right in merges],
    )
    theirs.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for text in [*SAMPLES.values(), *drawn_texts(200)]:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, allowed_special="all") == expected


# SentencePiece


def test_a_sentencepiece_file_needs_its_library(tmp_path, monkeypatch):
    importing = builtins.__import__

    def without(name, *rest, **more):
        if name == "sentencepiece":
            raise ImportError(name)
        return importing(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(InputError, match="pip install sentencepiece"):
        load_tokenizer(tmp_path)


def stand_in(prefix="▁", step=1.0, decodes=None, raises=False):
    """What the library gives of SMALL's model: names, kinds, scores, and a text's pieces."""

    class SentencePieceProcessor:
        def __init__(self, model_file):
            if raises:
                raise RuntimeError("could not parse ModelProto")

        get_piece_size = staticmethod(lambda: len(NAMES))
        id_to_piece = staticmethod(NAMES.__getitem__)
        is_control = staticmethod(lambda i: i in (1, 2))
        is_unknown = staticmethod(lambda i: i == 0)
        is_byte = staticmethod(lambda i: 3 <= i < 259)
        get_score = staticmethod(lambda i: -step * max(0, i - 259))
        encode = staticmethod(
            lambda text, out_type=int: [prefix + text] if out_type is str else text
        )
        decode = staticmethod(lambda encoded: decodes or encoded)

    return types.SimpleNamespace(SentencePieceProcessor=SentencePieceProcessor)


def test_a_sentencepiece_file_is_read_with_every_way_to_make_a_piece(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", stand_in())
    tokenizer = ByteFallback.from_sentencepiece("x.model")
    pairs = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁"), ("t", "h")]
    assert [(NAMES[a], NAMES[b]) for a, b in tokenizer.merges] == pairs
    assert tokenizer == SMALL
    monkeypatch.setitem(sys.modules, "sentencepiece", stand_in(prefix=""))
    assert ByteFallback.from_sentencepiece("x.model") == with_prefix("never")


@pytest.mark.parametrize("other", [{"step": 0.5}, {"step": -1.0}, {"decodes": "fi"}])
def test_a_sentencepiece_file_of_another_kind_is_refused(other, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", stand_in(**other))
    with pytest.raises(CheckpointError, match="x.model is no BPE with bytes"):
        ByteFallback.from_sentencepiece("x.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", stand_in(raises=True))
    with pytest.raises(CheckpointError, match="x.model is no SentencePiece file"):
        ByteFallback.from_sentencepiece("x.model")


def test_ids_equal_sentencepieces(tmp_path):
    """Where the library is installed: its own trainer, and its own encoder."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text(PROSE[:100_000], encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=1000,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(tmp_path)
    for text in [*SAMPLES.values(), *drawn_texts(1_000, without={"\x00"})]:
        if "\x00" not in text:
            assert tokenizer.encode(text) == theirs.encode(text), text


# Bad input


def rename(vocabulary, name):
    vocabulary["x"] = vocabulary.pop(name)


TORN = {
    "cut": (lambda found: ..., "is not JSON"),
    "a list": (lambda found: [], "has no model with a vocab and merges"),
    "no vocabulary": (lambda found: found["model"].pop("vocab"), "has no model with a vocab"),
    "a float": (lambda found: found["model"]["vocab"].update(x=1.5), "has no model with a vocab"),
    "a hole": (lambda found: found["model"]["vocab"].update(x=900), "the token 'x' has the id 900"),
    "twice": (lambda found: found["model"]["vocab"].update(x=5), "has the id 5, and must have 6"),
    "a byte": (lambda found: rename(found["model"]["vocab"], "<0x00>"), "has no '<0x00>'"),
    "three": (lambda found: found["model"]["merges"].append("a b c"), r"merges\[5\] is 'a b c'"),
    "a number": (lambda found: found["model"]["merges"].append(5), r"merges\[5\] is 5"),
    "unknown": (lambda found: found["model"]["merges"].append("x h"), "has no 'x'"),
    "no token": (lambda found: found["model"]["merges"].append("h h"), "has no 'hh'"),
    "again": (lambda found: found["model"]["merges"].append("h e"), r"merges\[5\] is"),
    "dropout": (lambda found: found["model"].update(dropout=0.5), "model.dropout is 0.5"),
    "normalizer": (lambda found: found.update(normalizer={"type": "NFKC"}), "NFKC.*not follow"),
    "added": (lambda found: found["added_tokens"][0].update(lstrip=True), "an added token is"),
    "moved": (lambda found: found["added_tokens"][0].update(id=7), "'<unk>' has the id 7, in the"),
    "nameless": (lambda found: found["added_tokens"][0].pop("content"), "added_tokens without id"),
}  # fmt: skip


@pytest.mark.parametrize(("tear", "message"), TORN.values(), ids=TORN)
def test_torn_files(tear, message, tmp_path):
    SMALL.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    torn = tear(found)
    text = text[:-9] if torn is ... else json.dumps(torn if torn == [] else found)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as error:
        ByteFallback.load(tmp_path)
    assert str(path) in str(error.value)


def test_bad_input():
    n = SMALL.vocabulary_size
    for error, message, call in (
        (DtypeError, "text is of type bytes", lambda: SMALL.encode(b"a")),
        (InputError, r"text\[1\] is U\+D83D", lambda: SMALL.encode("a\ud83d")),
        (InputError, rf"ids\[1\] is {n}, outside", lambda: SMALL.decode([3, n])),
        (DtypeError, r"ids\[0\] is of type float", lambda: SMALL.decode(np.ones(3))),
        (InputError, "prefix is 'x', and must be one of", lambda: with_prefix("x")),
        (InputError, "the vocabulary has no '<0x00>'", lambda: ByteFallback(SPECIAL, [])),
        (InputError, "the vocabulary has no '<pad>'", lambda: ByteFallback(FIRST, [], ("<pad>",))),
        (InputError, "two tokens are 'a'", lambda: ByteFallback((*FIRST, "a", "a"), [])),
        (InputError, r"vocabulary\[259\] is ''", lambda: ByteFallback((*FIRST, ""), [])),
        (InputError, r"merges\[0\] is \(5, 999\)", lambda: ByteFallback(NAMES, [(5, 999)])),
        (InputError, r"merges\[0\] is \(5, 6\)", lambda: ByteFallback(NAMES, [(5, 6)])),
    ):
        with pytest.raises(error, match=message):
            call()
