import json
import sys
import unicodedata
from itertools import count, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.data.cleaning import EXAMPLES, FORMS, Cleaning, Report, clean, cleaner, normalize
from reference.errors import DtypeError, InputError

TEXTS = st.lists(st.text("aéb \n\r\x00", max_size=4), max_size=30)


def cleaned(texts, **settings):
    """The texts that are kept, and the report."""
    report = Report()
    named = ((f"line {n}", text) for n, text in enumerate(texts, 1))
    return list(clean(named, Cleaning(**settings), report)), report


# Normalization


@given(st.lists(st.text()))
def test_left_to_itself_cleaning_changes_nothing(texts):
    """Turns red if line endings are changed without a form."""
    kept, report = cleaned(texts)
    assert kept == [(f"line {n}", text) for n, text in enumerate(texts, 1)]
    assert (report.came, report.kept, report.changed) == (len(texts), len(texts), 0)
    assert report.dropped == {}


@pytest.mark.parametrize(
    "text, form, expected",
    [
        ("e\u0301", "NFC", "\u00e9"),
        ("\u00e9", "NFD", "e\u0301"),
        ("\ufb01\u00b2\uff12\u00e9", "NFC", "\ufb01\u00b2\uff12\u00e9"),
        ("\ufb01\u00b2\uff12e\u0301", "NFKC", "fi22\u00e9"),
        ("\ufb01\u00b2\uff12\u00e9", "NFKD", "fi22e\u0301"),
        ("a\r\nb\rc\n\nd\x0be\x0cf\x85g\u2028h\u2029", "NFC", "a\nb\nc\n\nd\ne\nf\ng\nh\n"),
        ("a\r\r\nb\n\r", "NFC", "a\n\nb\n\n"),
        ("\x00a\x07\tb\x1b[0m\x7f\x9d", "NFC", "a\tb[0m"),
        ("e\x00\u0301", "NFC", "\u00e9"),
        ("\ufeff\u200d\u00ad", "NFC", "\ufeff\u200d\u00ad"),
    ],
)
def test_one_form_for_each_character(text, form, expected):
    assert normalize(text, form) == expected
    [(_, kept)], report = cleaned([text], normalization=form)
    assert kept == expected and report.changed == (text != expected)


@pytest.mark.parametrize("form", ["NFC", "NFKD"])
def test_no_character_of_unicode_leaves_a_control_behind(form):
    every = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    result = normalize(every, form)
    controls = {c for c in set(result) if unicodedata.category(c) in ("Cc", "Zl", "Zp")}
    assert controls == {"\t", "\n"}


@given(st.text(st.sampled_from("e\u0301\u0323\x00\r\n\u2028\ufb01\u1e69\u212b한\u1112")))
def test_normalizing_twice_is_normalizing_once(text):
    """Turns red if controls are removed after the form is made."""
    for form in FORMS:
        once = normalize(text, form)
        assert normalize(once, form) == once and unicodedata.is_normalized(form, once)
        assert normalize(unicodedata.normalize("NFD", text), form) == once or form == "NFC"


# Length


def test_lengths_are_counted_in_characters_and_both_bounds_are_kept():
    texts = ["", "猫", "ab", "日本語", "abcd"]
    kept, report = cleaned(texts, shortest=2, longest=3)
    assert [text for _, text in kept] == ["ab", "日本語"]
    assert report.dropped == {"too short": 2, "too long": 1}
    assert report.examples["too short"] == ["line 1 (0 characters)", "line 2 (1 characters)"]
    assert report.examples["too long"] == ["line 5 (4 characters)"]


def test_a_text_of_which_nothing_remains_is_too_short():
    kept, report = cleaned(["\x00\x07", "\ud55c"], normalization="NFC", shortest=1)
    assert [text for _, text in kept] == ["\ud55c"]
    assert report.dropped == {"too short": 1} and report.changed == 1
    assert cleaned(["", "a"], longest=0)[0] == [("line 1", "")]


# Duplicates


@given(TEXTS)
def test_of_exact_copies_the_first_stays(texts):
    """Turns red if texts are compared as they were before normalization."""
    kept, report = cleaned(texts, normalization="NFC", duplicates="exact")
    normalized = [normalize(text, "NFC") for text in texts]
    first = {text: n for n, text in reversed(list(enumerate(normalized, 1)))}
    assert kept == [(f"line {n}", text) for text, n in sorted(first.items(), key=lambda x: x[1])]
    assert report.dropped.get("exact duplicate", 0) == len(texts) - len(first)


@given(TEXTS, st.data())
def test_another_order_keeps_the_same_texts(texts, data):
    """Turns red if a text is remembered by the name it came under."""
    other = data.draw(st.permutations(texts))
    one, two = (cleaned(order, duplicates="exact")[0] for order in (texts, other))
    assert sorted(text for _, text in one) == sorted(text for _, text in two) == sorted(set(texts))


def test_a_near_copy_is_reported_with_what_it_repeats():
    rng = np.random.default_rng(0)
    texts = [" ".join(str(n) for n in rng.integers(0, 10**6, 60)) for _ in range(3)]
    near = [*texts, texts[1], texts[2] + " more", texts[0].replace(" ", "\n")]
    kept, report = cleaned(near, duplicates="near", shortest=10)
    assert [name for name, _ in kept] == ["line 1", "line 2", "line 3"]
    assert report.dropped == {"exact duplicate": 1, "near duplicate": 2}
    assert report.examples["exact duplicate"] == ["line 4"]
    more, blanks = report.examples["near duplicate"]
    assert (
        more.startswith("line 5 is like line 3 (0.9") and blanks == "line 6 is like line 1 (1.00)"
    )
    assert len(cleaned(near, duplicates="exact")[0]) == 5


def test_what_was_dropped_is_not_what_others_are_compared_with():
    text = "the first of several sentences that say nearly but not quite the same"
    _, report = cleaned(["", text, text.upper(), text + "."], duplicates="near", shortest=1)
    assert report.examples["near duplicate"][0] == "line 3 is like line 2 (1.00)"
    assert report.examples["near duplicate"][1].startswith("line 4 is like line 2 (0.")


def test_similarity_is_what_was_asked_for():
    text = " ".join(str(n) for n in np.random.default_rng(1).integers(0, 10**6, 40))
    pair = [text, text[: len(text) * 3 // 4]]
    assert len(cleaned(pair, duplicates="near", similarity=0.6)[0]) == 1
    assert len(cleaned(pair, duplicates="near", similarity=0.9)[0]) == 2


# The report


@given(TEXTS)
def test_every_text_is_counted_once(texts):
    """Turns red if a text that is too short is also looked up among the copies."""
    settings = {"shortest": 1, "longest": 3, "duplicates": "near", "normalization": "NFKC"}
    kept, report = cleaned(texts, **settings)
    assert report.came == len(texts) and report.kept == len(kept)
    assert report.came == report.kept + sum(report.dropped.values())
    for reason, number in report.dropped.items():
        assert len(report.examples[reason]) == min(number, EXAMPLES)
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()


def test_the_report_is_a_few_lines():
    _, report = cleaned(["é"] + ["ab"] * 9 + ["a\r"], shortest=2, duplicates="exact")
    assert str(report).splitlines() == [
        "11 texts: 2 kept, 9 dropped, 0 changed by normalization",
        "  too short: 1",
        "    line 1 (1 characters)",
        "  exact duplicate: 8",
        *(f"    line {n}" for n in range(3, 8)),
        "    and 3 more",
    ]
    assert report.as_dict() == {
        "came": 11,
        "kept": 2,
        "changed": 0,
        "dropped": {
            "too short": {"count": 1, "examples": ["line 1 (1 characters)"]},
            "exact duplicate": {"count": 8, "examples": [f"line {n}" for n in range(3, 8)]},
        },
    }


def test_no_more_is_read_than_is_asked_for():
    report = Report()
    endless = ((n, "x" * (n % 3)) for n in count())
    texts = clean(endless, Cleaning(shortest=1), report)
    assert list(islice(texts, 3)) == [(1, "x"), (2, "xx"), (4, "x")]
    assert (report.came, report.kept, report.dropped) == (5, 3, {"too short": 2})


def test_rows_that_hold_more_than_a_text_are_cleaned_one_by_one():
    report = Report()
    clean_one = cleaner(Cleaning("NFC", duplicates="exact"), report)
    rows = [("a.csv, line 2", "e\u0301", 1), ("a.csv, line 3", "é", 0), ("b.csv, line 2", "", 1)]
    assert [(clean_one(name, text), label) for name, text, label in rows] == [
        ("é", 1),
        (None, 0),
        ("", 1),
    ]
    assert report.examples == {"exact duplicate": ["a.csv, line 3"]}


# What cannot be


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"normalization": "nfc"}, "normalization is 'nfc'; give NFC, NFKC, NFD, NFKD or None"),
        ({"normalization": ["NFC"]}, "normalization is .'NFC'.; give"),
        ({"shortest": -1}, "shortest is -1; give a number of characters, 0 or more"),
        ({"shortest": None}, "shortest is None; give"),
        ({"shortest": True}, "shortest is True; give"),
        ({"longest": 2.5}, "longest is 2.5; give"),
        ({"shortest": 5, "longest": 4}, "longest is 4, less than shortest, 5: no text can be kept"),
        ({"duplicates": True}, "duplicates is True; give 'exact', 'near' or None"),
        ({"similarity": 80}, "similarity is 80; give a number in"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Cleaning(**settings)


def test_what_is_no_text_is_refused_by_name():
    with pytest.raises(DtypeError, match="line 1: text is of type bytes, and must be str"):
        cleaned([b"text"])
    with pytest.raises(InputError, match=r"line 2: text\[1\] is U\+D800, half of a surrogate pair"):
        cleaned(["text", "a\ud800"], duplicates="exact")
