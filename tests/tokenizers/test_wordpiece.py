import copy
import dataclasses
import json
import os
import pickle
import time
import unicodedata
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.errors import CheckpointError, DtypeError, InputError
from reference.tokenizers import load_tokenizer
from reference.tokenizers.bert_words import normalize, words_of
from reference.tokenizers.wordpiece import SPECIAL, WordPiece
from reference.tokenizers.wordpiece_training import LEARNERS, alphabet_of
from tests.peers import peer
from tests.tokenizers.texts import (
    CHARACTERS,
    NUMBERS,
    PROSE,
    SAMPLES,
    TIMES,
    drawn_texts,
    ordered_differently,
    shared,
)

PIECES = ["un", "##aff", "##able", "a", "##a", "e", "##e", "cafe", ",", "中", "ᄒ", "##ᅡ", "##ᆫ"]
SMALL = WordPiece((*SPECIAL, *PIECES))


@cache
def trained(learner="frequency"):
    return WordPiece.train(PROSE[:100_000], 700, learner=learner)


@cache
def published():
    return WordPiece.load(shared("bert_vocab"))


@cache
def hugging_faces(lower=True, strip_accents=None, split_cjk=True):
    """BERT's tokenizer of the library, with the published pieces or those trained here."""
    tokenizers = peer("tokenizers")
    ids = {piece: i for i, piece in enumerate(published().vocabulary)}
    theirs = tokenizers.BertWordPieceTokenizer(
        ids, lowercase=lower, strip_accents=strip_accents, handle_chinese_chars=split_cjk
    )
    theirs._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A", special_tokens=[]
    )
    return theirs


@cache
def disagreeing():
    """The characters whose letters or words differ, by asking both about each.

    The library's tables are of several versions of Unicode, and it takes 256 Chinese characters
    from U+2B820 on for other letters; Python's tables are of one version, which it names.
    """
    tokenizers = peer("tokenizers")
    normalizer = tokenizers.normalizers.BertNormalizer()
    cut = tokenizers.pre_tokenizers.BertPreTokenizer()
    different = set(ordered_differently())
    for character in CHARACTERS:
        ours = "".join(letter for letter, _ in normalize(f"a{character}b"))
        theirs = normalizer.normalize_str(f"a{character}b")
        if unicodedata.category(character) == "Cn" or ours != theirs:
            different.add(character)
        elif ours not in ("ab", "a b") and character > "~":
            words = ["".join(letter for letter, _ in word) for word in words_of(enumerated(ours))]
            if words != [word for word, _ in cut.pre_tokenize_str(ours)]:
                different.add(character)
    return different


def enumerated(text):
    return [(letter, i) for i, letter in enumerate(text)]


# Words


def test_a_word_is_what_bert_takes_for_one():
    text = "Café, e\u0301a\u200bb\x00  中文x\u3000$5+3's\r\n"
    words = ["".join(letter for letter, _ in word) for word in words_of(normalize(text))]
    assert words == ["cafe", ",", "eab", "中", "文", "x", "$", "5", "+", "3", "'", "s"]
    cased = words_of(normalize("Café", lower=False, strip_accents=False))
    assert ["".join(letter for letter, _ in word) for word in cased] == ["Café"]
    together = words_of(normalize("中文", split_cjk=False))
    assert ["".join(letter for letter, _ in word) for word in together] == ["中文"]


def test_every_chinese_character_is_a_word_and_its_neighbours_are_not():
    """The blocks as the released code has them; two of them touch."""
    blocks = (
        "3400-4dbf 4e00-9fff 20000-2a6df 2a700-2b73f 2b740-2b81f 2b820-2ceaf f900-faff 2f800-2fa1f"
    )
    inside = {code for block in blocks.split() for code in range(*ends(block))}
    borders = {code + n for block in blocks.split() for code in ends(block) for n in (-1, 0)}
    for code in borders:
        letters = normalize(f"a{chr(code)}b", strip_accents=False)
        assert (len(words_of(letters)) == 3) == (code in inside), hex(code)


def ends(block):
    first, last = block.split("-")
    return int(first, 16), int(last, 16) + 1


def test_marks_are_ordered_as_in_a_decomposed_text():
    """Two marks that stay, in the order that is not canonical, and one between them that goes."""
    text = "a\u302e\u0301\U0001d165b"
    decomposed = unicodedata.normalize("NFD", text)
    kept = [letter for letter in decomposed if unicodedata.category(letter) != "Mn"]
    assert [letter for letter, _ in normalize(text)] == kept == list("a\U0001d165\u302eb")


# Encoding and decoding


def test_the_longest_piece_that_fits_is_taken_again_and_again():
    unknown = SMALL.special_ids["[UNK]"]
    assert SMALL.encode("unaffable") == [5, 6, 7]
    assert SMALL.encode("UNAFFABLE, a") == [5, 6, 7, 13, 8]
    assert SMALL.encode("aae ea") == [8, 9, 11, 10, 9]
    assert SMALL.encode("unaffablex a") == [unknown, 8]
    assert SMALL.decode([5, 6, 7, 13, 8]) == "unaffable , a"
    assert SMALL.decode([6, 5]) == "##aff un"
    assert SMALL.encode("") == [] and SMALL.decode([]) == ""


def test_a_word_of_more_than_a_hundred_letters_is_unknown():
    assert SMALL.encode("a" * 100) == [8] + [9] * 99
    assert SMALL.encode("a" * 101) == [1]
    assert SMALL.encode("é" * 100) == [10] + [11] * 99


def test_offsets_show_where_each_token_stands():
    text = " Cafe\u0301e, 한 [MASK]xx"
    ids, offsets = SMALL.encode_with_offsets(text, allowed_special="all")
    assert ids == [12, 11, 13, 15, 16, 17, 4, 1]
    shown = [text[start:end] for start, end in offsets]
    assert shown == ["Cafe", "e", ",", "한", "한", "한", "[MASK]", "xx"]
    ids, offsets = SMALL.encode_with_offsets(text)
    assert ids[-3:] == [1, 1, 1] and offsets[-1] == (17, 19)


def in_letters(text):
    return "".join(letter for letter, _ in normalize(text)).strip()


@given(
    st.text()
    | st.lists(st.sampled_from([*"aeé\u0301\u0323, 中한각[\x00\u200b", "un", "[MASK]"])).map(
        "".join
    ),
    st.booleans(),
)
def test_a_token_is_what_stands_at_its_offsets(text, special):
    """Turns red if an offset is one too far, or counts the normalized text's letters."""
    allowed = "all" if special else ()
    ids, offsets = SMALL.encode_with_offsets(text, allowed_special=allowed)
    assert ids == SMALL.encode(text, allowed_special=allowed)
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)
    for token, (start, end) in zip(ids, offsets, strict=True):
        piece, there = SMALL.vocabulary[token].removeprefix("##"), text[start:end]
        assert 0 <= start < end <= len(text)
        if piece in SPECIAL:
            assert piece == "[UNK]" or piece == there
        elif len(unicodedata.normalize("NFD", there)) > 1 and len(there) == 1:
            assert piece in in_letters(there)
        else:
            assert in_letters(there) == piece


@given(st.text())
def test_encoding_does_not_depend_on_how_a_text_is_composed(text):
    """Turns red if accents are only taken off where they are a character's own."""
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert trained().encode(composed) == trained().encode(decomposed)


def test_special_tokens_are_ordinary_text_unless_allowed():
    assert SMALL.special_ids == {name: i for i, name in enumerate(SPECIAL)}
    assert SMALL.encode("[SEP]") == [1, 1, 1]
    assert SMALL.encode("a[SEP]a", allowed_special=["[SEP]"]) == [8, 3, 8]
    assert SMALL.encode("a[SEP][MASK]", allowed_special="all") == [8, 3, 4]
    with pytest.raises(InputError, match=r"allowed_special has '\[X\]'"):
        SMALL.encode("a", allowed_special=["[X]"])


def test_one_text_or_two_as_a_model_reads_them():
    assert SMALL.encode_pair("a") == ([2, 8, 3], [0, 0, 0])
    assert SMALL.encode_pair("a, e", "un") == ([2, 8, 13, 10, 3, 5, 3], [0] * 5 + [1] * 2)
    assert SMALL.encode_pair("", "") == ([2, 3, 3], [0, 0, 1])
    assert SMALL.encode_pair("[SEP]", "a")[0] == [2, 1, 1, 1, 3, 8, 3]


def test_a_tokenizer_cannot_be_changed_but_copied():
    tokenizer = WordPiece([*SPECIAL, "a"], lower=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokenizer.lower = True
    tokenizer.encode("a a")
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other == tokenizer and hash(other) == hash(tokenizer)
    assert tokenizer != WordPiece([*SPECIAL, "a"]) and "a" not in repr(tokenizer.vocabulary[:5])
    assert tokenizer.tokens == tuple(name.encode() for name in tokenizer.vocabulary)


@TIMES
def test_a_megabyte_of_one_character_takes_seconds(times):
    for character in "a!\u0301":
        start = time.process_time()
        published().encode(character * times)
        assert time.process_time() - start < times / 10**5


# Training


def train_naively(words, pieces, size, score):
    """Count everything anew for each merge."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    rows = {word: [ids["##" * (n > 0) + c] for n, c in enumerate(word)] for word in words}
    pieces = list(pieces)
    while len(pieces) < size:
        single, together = Counter(), Counter()
        for word, row in rows.items():
            for token in row:
                single[token] += words[word]
            for pair in zip(row, row[1:], strict=False):
                together[pair] += words[word]
        if not (scores := score(single, together)):
            break
        best = min(scores, key=lambda pair: (-scores[pair], pair))
        for row in rows.values():
            i = 0
            while i < len(row) - 1:
                if tuple(row[i : i + 2]) == best:
                    row[i : i + 2] = [len(pieces)]
                i += 1
        pieces.append(pieces[best[0]] + pieces[best[1]].removeprefix("##"))
    return pieces


def by_likelihood(single, together):
    return {p: n / (single[p[0]] * single[p[1]]) for p, n in together.items() if n >= 2}


def by_frequency(single, together):
    return together


@pytest.mark.parametrize(
    "learner, score", [("likelihood", by_likelihood), ("frequency", by_frequency)]
)
@settings(max_examples=60)
@given(
    words=st.dictionaries(st.text("ab", min_size=1), st.integers(1, 5), max_size=6)
    | st.dictionaries(st.text("abcde", min_size=1), st.integers(1, 5), max_size=12),
    number=st.integers(0, 30),
)
def test_training_is_the_naive_algorithm(learner, score, words, number):
    """Turns red if a score that a merge changed is not counted anew, or ties go otherwise."""
    pieces = [*SPECIAL, *alphabet_of(words)]
    size = len(pieces) + number
    assert LEARNERS[learner](words, pieces, size) == train_naively(words, pieces, size, score)


def test_likelihood_training_on_prose_is_the_naive_algorithm():
    words = Counter(SMALL.words(PROSE[:8_000]))
    pieces = [*SPECIAL, *alphabet_of(words)]
    learnt = LEARNERS["likelihood"](words, pieces, 160)
    assert learnt == train_naively(words, pieces, 160, by_likelihood)


def test_likelihood_prefers_letters_that_are_seldom_apart():
    """q and u always stand together, four times; t and h do more often, but also without."""
    text = "qua qui quo que " + "tha thi " * 5 + "ta ti to ha hi ho " * 5
    first = {learner: WordPiece.train(text, learner=learner).vocabulary for learner in LEARNERS}
    start = len([*SPECIAL, *alphabet_of(Counter(SMALL.words(text)))])
    assert first["likelihood"][start] == "qu" and first["frequency"][start] == "th"


def test_training_by_frequency_is_hugging_faces():
    """Its ids of the alphabet are of chance, and break ties: it is given ours to begin with."""
    tokenizers = peer("tokenizers")
    words = Counter(SMALL.words(PROSE[:100_000]))
    theirs = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    theirs.normalizer = tokenizers.normalizers.BertNormalizer()
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=[*SPECIAL, *alphabet_of(words)], show_progress=False
    )
    theirs.train_from_iterator([PROSE[:100_000]], trainer)
    ids = theirs.get_vocab()
    assert sorted(ids, key=ids.get) == list(trained().vocabulary)


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_was_trained_encodes_all_that_it_was_trained_on(learner):
    tokenizer = trained(learner)
    assert tokenizer.vocabulary_size == 700 and tokenizer.special_tokens == SPECIAL
    assert tokenizer.special_ids["[UNK]"] not in tokenizer.encode(PROSE[:50_000])


@pytest.mark.parametrize("learner", LEARNERS)
def test_training_on_a_long_word_is_not_quadratic(learner):
    dna = "".join(np.random.default_rng(0).choice(list("acgt"), 30_000))
    start = time.process_time()
    assert WordPiece.train(dna, 300, learner=learner).vocabulary_size == 300
    assert time.process_time() - start < 10


def test_a_text_that_is_too_short_says_how_much_it_can_fill():
    with pytest.raises(InputError, match="this text of 5 characters can only fill 15"):
        WordPiece.train("abcab", 500)
    with pytest.raises(InputError, match="vocabulary is 10, and must be at least 11"):
        WordPiece.train("abcab", 10)
    assert WordPiece.train("abcab").vocabulary_size == 15
    assert WordPiece.train("").vocabulary == SPECIAL


# Against Hugging Face


@NUMBERS
def test_ids_and_offsets_equal_hugging_faces(number):
    ours, theirs = published(), hugging_faces()
    texts = [*SAMPLES.values(), *drawn_texts(number, disagreeing())]
    for text, encoding in zip(texts, theirs.encode_batch(texts), strict=True):
        text_ids, offsets = ours.encode_with_offsets(text, allowed_special="all")
        assert text_ids == encoding.ids, text
        if not is_reordered(text):  # where marks change places, the library keeps the offsets
            assert offsets == encoding.offsets, text


def is_reordered(text):
    """Whether the canonical order of marks is not the text's own."""
    one_by_one = "".join(unicodedata.normalize("NFD", character) for character in text)
    return unicodedata.normalize("NFD", text) != one_by_one


@pytest.mark.parametrize("rules", [(False, None, True), (True, False, True), (False, True, False)])
def test_ids_equal_hugging_faces_with_other_rules(rules):
    ours, theirs = WordPiece(published().vocabulary, *rules), hugging_faces(*rules)
    for text in [*SAMPLES.values(), *drawn_texts(300, disagreeing())]:
        assert ours.encode(text, allowed_special="all") == theirs.encode(text).ids, text


def test_pairs_equal_transformers(tmp_path):
    """From the files that `save` writes."""
    transformers = peer("transformers")
    for tokenizer in (published(), trained(), WordPiece(trained().vocabulary, False, None, False)):
        tokenizer.save(tmp_path)
        theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
        for first, second in ((PROSE[:2_000], None), ("Who's Ämy?", "中文 she is.")):
            expected = theirs(first, second)
            ids, segments = tokenizer.encode_pair(first, second)
            assert ids == expected["input_ids"]
            assert segments == expected["token_type_ids"]


# Files


@pytest.mark.parametrize("rules", [(True, None, True), (False, True, False)])
def test_what_is_saved_is_loaded(tmp_path, rules):
    more = ("[e1]", "<x>")
    tokenizer = WordPiece((*SMALL.vocabulary, *more), *rules, (*SPECIAL, *more))
    for folder in (tmp_path / "new" / "folder", tmp_path / "again"):
        tokenizer.save(folder)
        assert WordPiece.load(folder) == load_tokenizer(folder) == tokenizer
        assert sorted(os.listdir(folder)) == ["tokenizer_config.json", "vocab.txt"]
    assert (folder / "vocab.txt").read_bytes().decode() == "\n".join(tokenizer.vocabulary) + "\n"


def test_the_published_vocabulary_comes_back(tmp_path):
    assert published().vocabulary_size == 30_522 and published().lower
    assert published().special_ids == {
        "[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103
    }  # fmt: skip
    published().save(tmp_path)
    theirs = shared("bert_vocab/vocab.txt").read_bytes()
    assert (tmp_path / "vocab.txt").read_bytes() == theirs


def test_windows_line_ends_are_read(tmp_path):
    SMALL.save(tmp_path)
    path = tmp_path / "vocab.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert WordPiece.load(tmp_path) == SMALL


@given(st.data())
def test_a_file_cut_short_is_never_read(tmp_path_factory, data):
    """Turns red if the number of pieces in tokenizer_config.json is not looked at."""
    folder = tmp_path_factory.mktemp("cut")
    SMALL.save(folder)
    path = folder / data.draw(st.sampled_from(["vocab.txt", "tokenizer_config.json"]))
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 3))])
    try:
        assert WordPiece.load(folder) != SMALL  # the last piece lost its end
        assert path.name == "vocab.txt" and len(path.read_bytes()) > len(whole) - 8
    except CheckpointError as error:
        assert str(folder) in str(error)


CONFIG = "tokenizer_config.json"
TORN = {
    "no pieces": ("vocab.txt", lambda text: None, "is missing"),
    "not UTF-8": ("vocab.txt", lambda text: text.encode("utf-16"), "is not UTF-8 at byte 0"),
    "empty line": ("vocab.txt", lambda text: text.replace("##a\n", "\n"), "line 10 is ''"),
    "two pieces": ("vocab.txt", lambda text: text.replace("un\n", "u n\n"), "line 6 is 'u n'"),
    "twice": (
        "vocab.txt",
        lambda text: text.replace("un\n", "a\n"),
        "the piece 'a' is there twice",
    ),
    "no [SEP]": ("vocab.txt", lambda text: text.replace("[SEP]", "x"), r"token '\[SEP\]' is not"),
    "one more": ("vocab.txt", lambda text: text + "b\n", "has 19 pieces, and .* says 18"),
    "not JSON": (CONFIG, lambda text: text[:-5], "is not JSON"),
    "a list": (CONFIG, lambda text: "[]", "must hold names and values"),
    "a word": (CONFIG, lambda text: text.replace("true", '"yes"', 1), "lower is 'yes'"),
    "a number": (CONFIG, lambda text: text.replace("null", "1"), "strip_accents is 1"),
    "names": (CONFIG, lambda text: text.replace("[]", "5"), "must be a list of names"),
    "another": (CONFIG, lambda text: text.replace("[]", '["[X]"]'), r"special token '\[X\]'"),
}


@pytest.mark.parametrize(("name", "tear", "message"), TORN.values(), ids=TORN)
def test_torn_files(name, tear, message, tmp_path):
    SMALL.save(tmp_path)
    torn = tear((tmp_path / name).read_text(encoding="utf-8"))
    (tmp_path / name).unlink()
    if torn is not None:
        (tmp_path / name).write_bytes(torn.encode() if isinstance(torn, str) else torn)
    with pytest.raises(CheckpointError, match=message) as error:
        WordPiece.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_nothing_is_saved_where_it_would_not_be_read(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="has a tokenizer.json, which would be read in place"):
        SMALL.save(tmp_path)
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    SMALL.save(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        trained().save(tmp_path)
    assert WordPiece.load(tmp_path) == SMALL


# Bad input


def test_bad_input():
    n = SMALL.vocabulary_size
    for error, message, call in (
        (DtypeError, "text is of type bytes", lambda: SMALL.encode(b"a")),
        (DtypeError, "text is of type NoneType", lambda: SMALL.encode_with_offsets(None)),
        (DtypeError, "text is of type int", lambda: SMALL.encode_pair("a", 5)),
        (DtypeError, "text is of type list", lambda: WordPiece.train(["a"])),
        (InputError, r"text\[1\] is U\+D83D", lambda: SMALL.encode("a\ud83d")),
        (
            InputError,
            "learner is 'x', and must be one of",
            lambda: WordPiece.train("a", learner="x"),
        ),
        (DtypeError, "vocabulary is 300.0", lambda: WordPiece.train("a", 300.0)),
        (InputError, rf"ids\[1\] is {n}, outside", lambda: SMALL.decode([3, n])),
        (InputError, r"ids\[0\] is -1, outside", lambda: SMALL.decode(np.array([-1]))),
        (DtypeError, r"ids\[0\] is of type float", lambda: SMALL.decode(np.ones(3))),
        (DtypeError, "ids is of type str", lambda: SMALL.decode("abc")),
        (InputError, "the piece 'a' is there twice", lambda: WordPiece([*SPECIAL, "a", "a"])),
        (InputError, r"vocabulary\[5\] is 5", lambda: WordPiece([*SPECIAL, 5])),
        (InputError, r"vocabulary\[5\] is ''", lambda: WordPiece([*SPECIAL, ""])),
        (InputError, r"special token '\[PAD\]' is not", lambda: WordPiece(SPECIAL[1:])),
        (
            InputError,
            "special token 'pad' could be a word",
            lambda: WordPiece([*SPECIAL, "pad"], special_tokens=(*SPECIAL, "pad")),
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_tokenizer_json_of_hugging_face_is_read(tmp_path):
    hugging_faces(False, True, True).save(str(tmp_path / "tokenizer.json"))
    tokenizer = WordPiece.load(tmp_path)
    assert tokenizer == load_tokenizer(tmp_path)
    assert tokenizer == WordPiece(published().vocabulary, False, True, True)
    described = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    described["normalizer"]["clean_text"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(CheckpointError, match="tokenizer.json: normalizer is .*not follow"):
        WordPiece.load(tmp_path)
