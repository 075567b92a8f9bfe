"""Text that came from anywhere, made fit to be written anywhere.

Files hold bytes that are not in the encoding they claim, JSON holds half a surrogate pair, and a file's name is any
bytes. Such text can be held in memory but not encoded: one odd id would stop a job of a million. Here it becomes
readable and stays distinct: the byte 0xFF is kept as the four characters ``\\xff``, a lone surrogate as ``\\ud800``.
"""

from __future__ import annotations

import codecs
import re

# Decoding with this error handler keeps each byte that cannot be decoded as one lone surrogate, whichever the encoding
# (Python's own "surrogateescape" cannot do UTF-16).
KEEP_BYTES = "rd_hf.keep_bytes"
_BYTES = range(0xDC00, 0xDD00)
_CANNOT_BE_ENCODED = re.compile("[\ud800-\udfff]")


def _keep_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(_BYTES.start + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(KEEP_BYTES, _keep_bytes)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - _BYTES.start:02x}" if code in _BYTES else f"\\u{code:04x}"


def readable(text: str) -> str:
    """``text`` with whatever no encoding can write as backslash escapes; other text as it is."""
    return text if text.isascii() else _CANNOT_BE_ENCODED.sub(_escape, text)
