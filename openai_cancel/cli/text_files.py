"""Files of text as people have them: in UTF-8 or UTF-16, with any line breaks, or by mistake no text at all."""

import codecs
import io
import re
from functools import partial
from typing import BinaryIO

CHUNK = 2**18
"""The number of bytes to read at once."""

NOT_TEXT = "is compressed or not text: unpack it, or export it as CSV"
"""The problem of a file for which `decoder_of` returns None."""

_BINARY = re.compile(
    rb"\x1f\x8b|PK\x03\x04|\x28\xb5\x2f\xfd|BZh[1-9]1AY|\xfd7zXZ|\xd0\xcf\x11\xe0|PAR1\x15|SQLite format 3\0"
)
"""The beginning of a file of gzip, ZIP (also of Excel), zstd, bzip2, xz, an older Excel, Parquet, or SQLite."""


def decoder_of(chunk: bytes) -> io.IncrementalNewlineDecoder | None:
    """Return a decoder for a file that begins with these bytes, or None if it is not text.

    Every line break becomes a line feed: Excel ends the lines of CSV for Macintosh with a carriage return. UTF-16 is
    also recognized without a byte order mark. Bytes that cannot be decoded are replaced.
    """
    if _BINARY.match(chunk):
        return None
    if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif chunk[:2].count(0) == 1:
        encoding = "utf-16-be" if chunk[0] == 0 else "utf-16-le"
    else:
        encoding = "utf-8-sig"
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)("replace"), translate=True)


def count_lines(file: BinaryIO) -> int:
    """Return about the number of lines from the position of a file on, and restore the position."""
    begin = file.tell()
    feeds = returns = 0
    for chunk in iter(partial(file.read, CHUNK), b""):
        feeds += chunk.count(b"\n")
        returns += chunk.count(b"\r")
    file.seek(begin)
    return feeds or returns
