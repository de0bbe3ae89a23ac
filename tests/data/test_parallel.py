import gzip
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.data.parallel import read_parallel
from reference.data.rows import WrongRows
from reference.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder, source, target):
    paths = folder / "text.en", folder / "text.de"
    for path, content in zip(paths, (source, target), strict=True):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return paths


def test_line_n_is_paired_with_line_n(tmp_path):
    paths = written(tmp_path, "a dog\na cat\n", "ein Hund\r\neine\u2028Katze")
    expected = [(1, "a dog", "ein Hund"), (2, "a cat", "eine\u2028Katze")]
    assert list(read_parallel(*paths)) == expected
    packed = [path.with_name(path.name + ".gz") for path in paths]
    for path, other in zip(paths, packed, strict=True):
        other.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_parallel(*packed)) == list(read_parallel(paths[0], packed[1])) == expected


RIGHT = [b"one", b" two ", "drei\x85".encode()]
WRONG = [b"", b" \t", b"\xff", b"LONG"]
SIDE = st.sampled_from(RIGHT + WRONG)


@FOLDER
@given(
    st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=6), st.tuples(st.booleans(), st.booleans())
)
def test_pairs_stay_together_where_some_are_skipped(tmp_path, pairs, closed):
    """Turns red if a line that is skipped on one side moves the rest of it up."""
    sides = [b"".join(line + b"\n" for line in side) for side in zip(*pairs, strict=True)]
    sides = [side.replace(b"LONG", b"x" * 200_000) for side in sides]
    for i, last in enumerate(pairs[-1]):
        if last and not closed[i]:
            sides[i] = sides[i].removesuffix(b"\n")
    paths = written(tmp_path, *sides)
    expected = [
        (line, source.decode(), target.decode())
        for line, (source, target) in enumerate(pairs, 1)
        if source in RIGHT and target in RIGHT
    ]
    wrong = WrongRows(skip=True)
    if expected:
        assert list(read_parallel(*paths, wrong=wrong)) == expected
    else:
        with pytest.raises(InputError, match="has no row that can be used"):
            list(read_parallel(*paths, wrong=wrong))
    if len(expected) < len(pairs):
        first = next(n for n, pair in enumerate(pairs, 1) if not set(pair) <= set(RIGHT))
        with pytest.raises(InputError, match=f"text.(en|de), line {first}: "):
            list(read_parallel(*paths))


@pytest.mark.parametrize(
    ("source", "target", "numbers"),
    [
        ("a\nb\nc\n", "x\ny\n", (3, 2)),
        ("a\nb", "x\ny\nz", (2, 3)),
        ("a\nb\n", "x\ny\n\n", (2, 3)),
        ("a\n", "", (1, 0)),
        ("a\n" * 1_000_001, "b\n" * 1_000_000, ("1,000,001", "1,000,000")),
    ],
)
def test_files_of_different_lengths_are_refused_before_the_first_pair(
    tmp_path, source, target, numbers
):
    """Turns red if only the end shows it: after a line that is missing, all pairs are wrong."""
    one, other = written(tmp_path, source, target)
    for wrong in (WrongRows(), WrongRows(skip=True)):
        with pytest.raises(InputError) as raised:
            next(read_parallel(one, other, wrong=wrong))
        assert str(raised.value).startswith(
            f"{one} has {numbers[0]} lines and {other} {numbers[1]}, and each line must be"
        )


def test_the_empty_side_is_named(tmp_path):
    for sides, empty in ((("a\nb\n", "x\n \n"), 1), (("a\n\t\n", "x\ny\n"), 0)):
        paths = written(tmp_path, *sides)
        message = f"{paths[empty]}, line 2: it is empty, .* no pair in {paths[1 - empty]}; correct"
        with pytest.raises(InputError, match=message):
            list(read_parallel(*paths))


def test_two_empty_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="text.en has no rows"):
        list(read_parallel(*written(tmp_path, "", "")))


def test_other_encodings_are_read_and_unfit_bytes_named(tmp_path):
    paths = written(tmp_path, "a\nfive\n", "x\nfünf\n".encode("latin-1"))
    found = list(read_parallel(*paths, encoding="latin-1"))
    assert found == [(1, "a", "x"), (2, "five", "fünf")]
    with pytest.raises(InputError, match=f"{paths[1]}, line 2: byte 2 of the line is 0xfc"):
        list(read_parallel(*paths))


def test_a_torn_side_is_named(tmp_path):
    one, _ = written(tmp_path, "a\n", "x\n")
    other = tmp_path / "text.de.gz"
    other.write_bytes(gzip.compress(b"x\n")[:-4])
    with pytest.raises(InputError, match=f"{other} cannot be unpacked"):
        list(read_parallel(one, other))


def test_long_files_are_never_in_memory(tmp_path):
    paths = written(
        tmp_path, "a line of usual length\n" * 90_000, "eine Zeile wie andere\n" * 90_000
    )
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_parallel(*paths)) == 90_000
        assert tracemalloc.get_traced_memory()[1] < 700_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "pairs"), [("train", 29_000), ("val", 1014)])
def test_the_captions_of_multi30k_are_read(name, pairs):
    paths = [SHARED / "multi30k" / f"{name}.{language}.gz" for language in ("en", "de")]
    if not all(path.exists() for path in paths):
        pytest.skip("multi30k is not beside the checkout")
    found = list(read_parallel(*paths))
    assert [line for line, _, _ in found] == list(range(1, pairs + 1))
    if name == "train":
        assert found[0][1:] == (
            "Two young, White males are outside near many bushes.",
            "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
        )
