"""Text is read as editors save it, or refused with the line that cannot be read."""

import pytest

from convoy.service.text import NoText, decoded

TEXT = "Käse\nÖl\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_same_text_in_every_encoding_with_every_end_of_a_line(encoding: str, end: str) -> None:
    mark = "\ufeff" if encoding.startswith("utf-16-") else ""
    assert decoded((mark + TEXT.replace("\n", end)).encode(encoding)) == TEXT


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("a\nKäse".encode("latin-1"), "line 2 is not UTF-8 (byte 0xe4), want the file saved as UTF-8"),
        ("a\r\rKäse".encode("cp1252"), "line 3 is not UTF-8 (byte 0xe4)"),
        ("a\nb".encode("utf-16")[:-1], "line 2 ends within a character, want whole UTF-16 text"),
        ("ab\nc".encode("utf-16-le"), "line 1 has a NUL character, want the file saved as UTF-8"),
        ("ab".encode("utf-32"), "line 1 has a NUL character"),
        (b"a\nb\0", "line 2 has a NUL character"),
        (b"a\n\xe2\x82", "line 2 is not UTF-8 (byte 0xe2)"),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(data: bytes, why: str) -> None:
    with pytest.raises(NoText) as caught:
        decoded(data)
    assert why in str(caught.value)


def test_nothing_is_text() -> None:
    assert decoded(b"") == decoded(b"\xef\xbb\xbf") == decoded(b"\xff\xfe") == ""
