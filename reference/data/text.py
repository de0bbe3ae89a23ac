"""Text to train on: whole, or piece by piece where it is larger than memory.

A text can be cut anywhere, its tokens cannot: two halves of a word give other tokens than the word.
So a piece ends after a character that is seen and before a blank one (a space, a line's end), and
the tokens of the pieces, one after another, are the tokens of the whole.  For
`reference.tokenizers.BPE`, whose merges stay within the words of its PATTERN, this is why:

  No word crosses a cut.  An alternative of PATTERN that takes a blank takes it first (` ?\\p{L}+`)
      or takes nothing else (`\\s+`): in no word does a blank follow a character that is seen.
  Left of a cut the words are the same.  A row of letters ends before a blank as it does at the end
      of a text, and `\\s+(?!\\S)`, which looks one character past a run of blanks, looks no further
      than the character that is seen before the cut: no run of blanks is ever cut inside.
  Right of a cut the words are the same.  No alternative looks back.
  A special token's name has no blank in it, so it is not cut either.

A tokenizer of single characters can be cut anywhere.
"""

import codecs
import pydoc_data.topics
import re

from reference.data.rows import open_file
from reference.errors import InputError

# What `\s` means to BPE's PATTERN, Unicode's White_Space.  Python's `\s` has four more, which
# PATTERN takes for characters that are seen.
BLANK = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
UP_TO_LAST_CUT = re.compile(f"(?s:.*)[^{BLANK}](?=[{BLANK}])")
BYTES_AT_ONCE = 1 << 22


def read_text(path, encoding="utf-8"):
    """The whole text of a file as it stands, but for a byte-order mark; "" if it is empty.

    A file whose name ends in .gz is decompressed.  Line ends are not changed.  "utf-16" and
    "utf-32" are for files that begin with such a mark, "utf-16-le" and its like for others.
    Raises OSError for what cannot be opened, InputError for bytes that are not of the encoding, an
    encoding that there is not, or a .gz file that is torn.
    """
    return "".join(_decoded(path, BYTES_AT_ONCE, encoding))


def text_pieces(path, *, size=BYTES_AT_ONCE, encoding="utf-8"):
    """Yield the text of a file in pieces that a tokenizer can take one by one: see above.

    Joined, they are what `read_text` gives.  `size` bytes are read at a time, and a piece is about
    as many characters, or less where characters have several bytes.  Only where there is no blank
    to cut at, as in a line of a million letters, does a piece grow until one comes.  Memory: a few
    times the longest piece, whatever the size of the file.

    Raises what `read_text` raises, when it gets there, and InputError for a file with no text,
    empty or only blanks, before the first piece.
    """
    if size < 1:
        raise InputError(f"size is {size}; give the number of bytes to read at a time, 1 or more")
    uncut, rest, begun = [], "", False  # `uncut` has been searched, and is not searched again
    for text in _decoded(path, size, encoding):
        rest += text
        found = UP_TO_LAST_CUT.match(rest)
        if found:
            yield "".join([*uncut, found.group()])
            uncut, rest, begun = [], rest[found.end() :], True
        else:
            uncut.append(rest[:-1])
            rest = rest[-1:]  # its last character may be the one before a cut
    last = "".join([*uncut, rest])
    if not begun and not last.strip():
        raise InputError(f"{path} has no text: it is empty, or all blank; give another file")
    yield last


def _decoded(path, size, encoding):
    """Yield a file's text, `size` bytes at a time, without its byte-order mark."""
    decoder = _decoder(encoding)
    offset, line, mark = 0, 1, "\ufeff"
    with open_file(path) as file:
        data = None
        while data != b"":
            data = file.read(size)
            before = decoder.getstate()
            waiting = before[0]  # the bytes of a character that is not all there yet
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeError as error:
                at = getattr(error, "start", 0)
                decoder.setstate(before)
                line += decoder.decode(data[: max(at - len(waiting), 0)]).count("\n")
                raise InputError(
                    f"{path} is not {encoding.upper()}: byte {offset - len(waiting) + at}, in line "
                    f"{line}, is 0x{(waiting + data)[at]:02x}; save the text as UTF-8, or give the "
                    "encoding that it has (if a part of it has another than the rest, as when "
                    "files were joined, convert that part)"
                ) from None
            offset += len(data)
            line += text.count("\n")
            if text:
                yield text.removeprefix(mark)
                mark = ""


def _decoder(encoding):
    """What turns bytes into text, and waits for the rest of a character that is cut."""
    try:
        " ".encode(encoding)  # refuses what is no encoding of text, such as "hex"
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise InputError(
            f"encoding is {encoding!r}, which Python does not know for text; give one that it "
            "does, such as 'utf-8', 'utf-16' or 'latin-1'"
        ) from None
    # Marks are dropped for all encodings alike, and this one would not count their bytes.
    return codecs.getincrementaldecoder("utf-8" if name == "utf-8-sig" else name)()


def python_documentation():
    """The reference manual that every CPython carries for its `help()`: English and code."""
    return "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
