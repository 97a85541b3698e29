"""Reads text files in the encoding of their byte order mark.

Editors and exporters on Windows write UTF-16, or UTF-8 with a mark. Text without a mark is UTF-8.
"""

from __future__ import annotations

import codecs
from pathlib import Path

MARKS = (  # the mark of UTF-32 begins with that of UTF-16, so it comes first
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(file: Path | str) -> str:
    """The text of a file.

    Raises:
        OSError: If it cannot be read.
        UnicodeDecodeError: If it is not in the encoding of its byte order mark, or in UTF-8 without a mark.
    """
    content = Path(file).read_bytes()
    return content.decode(marked_encoding(content) or "utf-8")


def marked_encoding(content: bytes) -> str | None:
    """The encoding of a byte order mark; None without a mark."""
    return next((encoding for mark, encoding in MARKS if content.startswith(mark)), None)


def is_encodable(text: str, errors: str = "strict") -> bool:
    """Whether text can be encoded: JSON and YAML can hold half a character, which no file name or screen accepts.

    With ``errors`` "surrogateescape" a file name that is no UTF-8 counts as encodable.
    """
    try:
        text.encode(errors=errors)
    except UnicodeEncodeError:
        return False
    return True
