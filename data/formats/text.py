"""Reads the text of a file, in whatever encoding its first bytes announce.

Windows' editors and exporters write UTF-16 or UTF-8 with a byte order mark; without a mark, text is UTF-8.
"""

from __future__ import annotations

import codecs
from pathlib import Path

MARKS = (  # the longer ones first: that of UTF-32 begins with that of UTF-16
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
        UnicodeDecodeError: If it is no text in the encoding of its byte order mark, or in UTF-8 without one.
    """
    content = Path(file).read_bytes()
    return content.decode(marked_encoding(content) or "utf-8")


def marked_encoding(content: bytes) -> str | None:
    """The encoding that a byte order mark announces; None without one."""
    return next((encoding for mark, encoding in MARKS if content.startswith(mark)), None)


def is_encodable(text: str, errors: str = "strict") -> bool:
    """Whether text can be encoded: JSON and YAML can hold halves of characters, which no file and screen takes.

    With ``errors`` "surrogateescape" also if it stands for the name of a file that is no UTF-8.
    """
    try:
        text.encode(errors=errors)
    except UnicodeEncodeError:
        return False
    return True
