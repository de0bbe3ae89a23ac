import pytest

from reference.data.text import python_documentation, read_text
from reference.errors import InputError


def test_text_is_read_as_it_stands(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffGrüße\r\n日本\n".encode())
    assert read_text(path) == "Grüße\r\n日本\n"


def test_bytes_that_are_no_utf_8_are_shown(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"one\ntwo\nGr\xfc\xdfe\n")
    with pytest.raises(InputError, match="is not UTF-8: byte 10, in line 3, is 0xfc; save"):
        read_text(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        read_text(tmp_path / "nowhere.txt")


def test_python_carries_enough_documentation_to_train_on():
    text = python_documentation()
    assert len(text) > 300_000 and "lambda" in text
