"""Decoding of text files: UTF-8 with or without a byte order mark, UTF-16 with one, and any line ending."""

import codecs

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MARK = "\ufeff"


class NoText(ValueError):
    """Bytes that are not text. The message begins with the line number, so that a caller can prepend the file name."""


def decoded(data: bytes) -> str:
    """The text without its byte order mark, each line ended by a line feed. Raises NoText, which names the line."""
    codec = "utf-16" if data.startswith(_UTF_16) else "utf-8"
    try:
        text = _lines(data.decode(codec).removeprefix(_MARK))
    except UnicodeDecodeError as error:
        line = _line(_lines(data[: error.start].decode(codec, "replace")))
        if codec == "utf-16":
            raise NoText(f"line {line} ends within a character, want whole UTF-16 text") from None
        wrong = data[error.start]
        raise NoText(f"line {line} is not UTF-8 (byte 0x{wrong:02x}), want the file saved as UTF-8") from None
    if "\0" in text:
        # UTF-16 without its mark, or UTF-32: read as UTF-8, many of its characters are NUL.
        line = _line(text[: text.index("\0")])
        raise NoText(f"line {line} has a NUL character, want the file saved as UTF-8")
    return text


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line(before: str) -> int:
    return before.count("\n") + 1
