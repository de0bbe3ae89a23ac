import csv
import gzip
import io
import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.data.rows import LONGEST_LINE, WrongRows
from reference.data.tables import read_json_lines, read_rows, read_table
from reference.errors import DtypeError, InputError

FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
# A small alphabet, so that quotes, delimiters and line ends meet often.
FIELDS = st.text(st.sampled_from('ab",\t\n ;ü\u2028'), max_size=6)
HEADER = ["text", "label", "more"]


def written(folder, content, name="rows.csv"):
    content = content if isinstance(content, bytes) else content.encode()
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def table(rows, **form):
    """What Python's csv writes, and the line that each row starts at, the header left out."""
    text, starts = io.StringIO(newline=""), []
    writer = csv.writer(text, **{"quoting": csv.QUOTE_ALL, "lineterminator": "\r\n"} | form)
    writer.writerow(HEADER)
    for row in rows:
        starts.append(text.getvalue().count("\n") + 1)
        writer.writerow(row)
    return text.getvalue(), starts


def refused(path, message, read=read_rows, columns=("text", "label"), **options):
    with pytest.raises(InputError, match=message) as raised:
        list(read(path, columns=columns, **options))
    assert str(path) in str(raised.value)


# Tables


@FOLDER
@given(
    st.lists(st.lists(FIELDS, min_size=3, max_size=3), min_size=1),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["rows.csv", "rows.tsv", "rows.csv.gz"]),
)
def test_tables_that_python_writes_are_read(tmp_path, rows, quoting, name):
    """Turns red if a row's line is the one it ends at, or quotes are not undone."""
    form = {"quoting": quoting, "delimiter": "\t" if ".tsv" in name else ","}
    content, starts = table(rows, **form)
    path = written(tmp_path, content, name)
    expected = [
        (line, {"label": row[1], "text": row[0]}) for line, row in zip(starts, rows, strict=True)
    ]
    assert list(read_table(path, columns=["label", "text"])) == expected
    assert list(read_rows(path, columns=["label", "text"])) == expected


WRONG = [
    "too,few",
    "one,too,many,here",
    '"closed" too soon,1,2',
    'a,1,"never closed',
    "a\0,1,2",
    'a,"1\0",2',
    "a\rb,1,2",
    "LONG",
]


@FOLDER
@given(st.lists(st.sampled_from(["a,1,b", 'a,"1",b', *WRONG]), min_size=1, max_size=9))
def test_wrong_rows_are_skipped_alone(tmp_path, rows):
    """Turns red if the rows that were read in search of a closing quote are lost."""
    wrong = WrongRows(skip=True)
    content = "text,label,more\n" + "".join(row + "\n" for row in rows).replace(
        "LONG", "a," * LONGEST_LINE
    )
    path = written(tmp_path, content)
    right = [n for n, row in enumerate(rows, 2) if row not in WRONG]
    if not right:
        with pytest.raises(InputError, match="has no row that can be used"):
            list(read_table(path, columns=["label"], wrong=wrong))
        return
    found = list(read_table(path, columns=["label"], wrong=wrong))
    assert found == [(line, {"label": "1"}) for line in right]
    assert wrong.count == len(rows) - len(right)
    if wrong.count:
        named = "|".join(str(n) for n, row in enumerate(rows, 2) if row in WRONG)
        refused(path, f"line ({named}): ", columns=["label"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,1\nb\n", "line 3: it has 1 fields, and the header 2; correct it, or give --skip-wrong"),
        ('"a\nb",1\na,b,c\n', "line 4: it has 3 fields, and the header 2"),
        ('a,1\n"b\n\nc,2\n', "line 3: a quote is not closed, does not enclose a whole field, or"),
        ('a,1\n"b" c,2\n', "line 3: a quote is not closed"),
        ('a,1\n"b', "line 3: a quote is not closed.*quote=None"),
        ("a,1\nb\0,2\n", "line 3: it has a NUL byte"),
        ('"a\n\0",1\n', "line 2: it has a NUL byte"),
        ("a,1\nb,2\rc,3\rd,4\r", "line 3: a carriage return stands without a line feed"),
        (b"a,1\n\xff,2\n", "line 3: byte 1 of the line is 0xff"),
        (b'a,1\n"b\n\xff",2\n', "line 4: byte 1 of the line is 0xff"),
        ("a,1\n" + "b" * 10**6 + ",2\n", "line 3: it has more than 131,072 characters"),
        ('a,1\n"' + "b\n" * 10**6 + '",2\n', "line 3: a quote is not closed"),
    ],
)
def test_a_wrong_row_is_named_by_the_line_it_starts_at(tmp_path, rows, message):
    rows = rows if isinstance(rows, bytes) else rows.encode()
    refused(written(tmp_path, b"text,label\n" + rows), message)


def test_a_row_with_a_wrong_line_in_its_quotes_is_left_out(tmp_path):
    path = written(tmp_path, b'text,label\n"a\n\xff\nb",1\nc,2\n"d\n\xff')
    wrong = WrongRows(skip=True)
    assert list(read_rows(path, columns=["text", "label"], wrong=wrong)) == [
        (5, {"text": "c", "label": "2"})
    ]


def test_a_quote_that_is_not_closed_costs_bounded_memory(tmp_path):
    path = written(tmp_path, 'text,label\n"a,1\n' + "b,2\n" * 50_000)
    wrong = WrongRows(skip=True)
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_table(path, columns=["text"], wrong=wrong))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (count, wrong.count) == (50_000, 1) and peak < 12_000_000


@pytest.mark.parametrize("limit", [10, 10**9])
def test_the_csv_module_s_own_limit_does_not_matter_for_memory(tmp_path, limit):
    """Another library may have changed it."""
    before = csv.field_size_limit(limit)
    try:
        path = written(tmp_path, 'text,label\n"' + "b\n" * LONGEST_LINE + '",2\n')
        refused(path, "line 2: a quote is not closed")
    finally:
        csv.field_size_limit(before)


def test_quotes_can_be_ordinary_characters(tmp_path):
    path = written(tmp_path, 'text\tlabel\n"Well," he said\t1\nso 5"\t2\n', "rows.tsv")
    refused(path, "line 2: a quote is not closed")
    found = read_table(path, columns=["text"], quote=None)
    assert [row["text"] for _, row in found] == ['"Well," he said', 'so 5"']


def test_the_delimiter_can_be_given(tmp_path):
    path = written(tmp_path, "text;label\na,b;1\n", "rows.txt")
    assert list(read_table(path, columns=["text"], delimiter=";")) == [(2, {"text": "a,b"})]
    for delimiter in ("", ";;", "\n"):
        with pytest.raises(InputError, match="delimiter is .*, and must be one character"):
            read_table(written(tmp_path, "a"), columns=["a"], delimiter=delimiter)
    with pytest.raises(InputError, match="both"):
        read_table(path, columns=["text"], delimiter='"')
    with pytest.raises(InputError, match="ends in '.txt', and must end in .csv or .tsv"):
        read_table(path, columns=["text"])


def test_blank_lines_are_passed_over_and_rows_of_empty_fields_are_rows(tmp_path):
    path = written(tmp_path, "\ntext,label\n\n  \n,\na,1\n\n")
    found = [(5, {"text": "", "label": ""}), (6, {"text": "a", "label": "1"})]
    assert list(read_rows(path, columns=["text", "label"])) == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: its first line must name the columns"),
        (" \n\n", "is empty"),
        ("text,label\n", "has no rows"),
        ("text,label\n\n", "has no rows"),
        ("sentence,label,\na,1,\n", "has no column 'text'; it has 'sentence', 'label', ''"),
        ("text;label\na;1\n", "has no column 'text'; it has 'text;label'"),
        ("text,label,text\na,1,b\n", "has twice the column 'text'"),
        ('"text,label\na,1\n', "line 1, the header: a quote is not closed"),
        (b"\xff\ntext,label\na,1\n", "line 1, the header: byte 1 of the line is 0xff"),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_without_a_header_and_rows_nothing_can_be_read(tmp_path, content, message, skip):
    refused(written(tmp_path, content), message, wrong=WrongRows(skip=skip))


def test_only_the_columns_asked_for_must_be_one_of_a_name(tmp_path):
    path = written(tmp_path, "x,text,x\n1,a,2\n")
    assert list(read_rows(path, columns=["text"])) == [(2, {"text": "a"})]


def test_text_becomes_numbers_where_asked(tmp_path):
    path = written(tmp_path, 'text,label\n3,3\n4,"-0.5"\n')
    columns = {"text": int, "label": float}
    found = [row for _, row in read_rows(path, columns=columns)]
    assert found == [{"text": 3, "label": 3.0}, {"text": 4, "label": -0.5}]
    assert type(found[0]["label"]) is float and type(found[0]["text"]) is int
    columns = {"text": (str, int), "label": (int, float)}
    found = [row for _, row in read_rows(path, columns=columns)]
    assert found == [{"text": "3", "label": 3}, {"text": "4", "label": -0.5}]


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "1e999", "1_000", "9" * 5000, "True"])
def test_text_that_is_no_number_is_a_wrong_row(tmp_path, text):
    path = written(tmp_path, f"text,label\na,{text}\n")
    refused(path, "line 2: 'label' is .*, and must be a number", columns={"label": float})
    refused(path, "must be an integer", columns={"label": int})


# JSON Lines

JSON_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@FOLDER
@given(st.lists(st.tuples(st.text(max_size=9), JSON_VALUES), min_size=1), st.booleans())
def test_json_lines_that_python_writes_are_read(tmp_path, rows, escaped):
    """Turns red if True passes for a number."""
    wrong = WrongRows(skip=True)
    content, right = "", []
    for line, (text, label) in enumerate(rows, 1):
        row = {"more": [1, {}], "label": label, "text": text}
        content += json.dumps(row, ensure_ascii=escaped) + "\n"
        finite = type(label) is float and label - label == 0
        if finite or type(label) is int and abs(label) < 1e308:
            right.append((line, {"text": text, "label": float(label)}))
    path = written(tmp_path, content, "rows.jsonl")
    columns = {"text": str, "label": float}
    if right:
        assert list(read_rows(path, columns=columns, wrong=wrong)) == right
        assert wrong.count == len(rows) - len(right)
    else:
        refused(path, "no row that can be used", columns=columns, wrong=wrong)


def test_values_stay_what_they_are(tmp_path):
    path = written(
        tmp_path, '{"text": "a", "label": 3}\n\n{"label": "x", "text": ""}', "r.jsonl.gz"
    )
    assert list(read_json_lines(path, columns={"text": str, "label": (str, int)})) == [
        (1, {"text": "a", "label": 3}),
        (3, {"text": "", "label": "x"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a", "label"', r"it is not JSON \(Expecting ':' delimiter at character 22\)"),
        ('["a", "b"]', r"it is '\[\"a\", \"b\"\]', and must be an object"),
        ("3", "must be an object"),
        ('{"text": "a", "x": "b"}', "it has no 'label'; it has 'text', 'x'"),
        ('{"text": "a", "label": 3}', "'label' is 3, and must be text"),
        ('{"text": null, "label": "b"}', "'text' is None, and must be text"),
        ('{"text": "a", "label": "b", "label": "c"}', "it has the key 'label' twice"),
        ('{"text": "a", "label": "b", "x": NaN}', "it has NaN"),
        (r'{"text": "\udc00", "label": "b"}', "half of a surrogate pair"),
        ('{"text": "a\0", "label": "b"}', "it is not JSON"),
        ('{"text": "' + "a" * 10**6 + '"}', "more than 131,072 characters"),
    ],
)
def test_wrong_json_lines_are_named_by_line(tmp_path, text, message):
    good = '{"text": "a", "label": "b"}\n'
    path = written(tmp_path, good + "\n" + text + "\n" + good, "rows.jsonl")
    refused(path, "line 3: .*" + message)
    wrong = WrongRows(skip=True)
    found = list(read_rows(path, columns=["text"], wrong=wrong))
    expected = [1, 3, 4] if "label" in text and "'label' is" in message else [1, 4]
    if "it has no 'label'" in message:
        expected = [1, 3, 4]
    assert [line for line, _ in found] == expected and wrong.count == 3 - len(expected)


@pytest.mark.parametrize("text", ["true", "1e999", "-1e999", '"3"', "null", "[3]", "1" + "0" * 400])
def test_a_value_that_is_no_number_is_a_wrong_row(tmp_path, text):
    path = written(tmp_path, f'{{"label": {text}}}\n', "rows.jsonl")
    refused(path, "line 1: 'label' is .*, and must be a number", columns={"label": float})
    if "000" not in text:
        refused(path, "must be an integer or a number", columns={"label": (int, float)})


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    refused(written(tmp_path, content, "rows.jsonl"), "has no rows")


# The form by the name


def test_other_endings_are_refused(tmp_path):
    for name in ("rows.txt", "rows", "rows.json", "rows.gz"):
        refused(tmp_path / name, "must end in .csv, .tsv or .jsonl, or one of these with .gz")


def test_endings_may_be_in_capitals(tmp_path):
    path = tmp_path / "ROWS.CSV.GZ"
    path.write_bytes(gzip.compress(b"text\na\n"))
    assert list(read_rows(path, columns=["text"])) == [(2, {"text": "a"})]


def test_the_encoding_reaches_every_form(tmp_path):
    for name, content in (("r.csv", "text\nü\n"), ("r.jsonl", '{"text": "ü"}\n')):
        path = written(tmp_path, content.encode("latin-1"), name)
        assert [r for _, r in read_rows(path, columns=["text"], encoding="latin-1")] == [
            {"text": "ü"}
        ]
        refused(path, "0xfc, which does not fit utf-8", columns=["text"])


def test_columns_are_a_list(tmp_path):
    with pytest.raises(DtypeError, match="columns is 'text', and must be a list of names"):
        read_rows(written(tmp_path, "text\na\n"), columns="text")
