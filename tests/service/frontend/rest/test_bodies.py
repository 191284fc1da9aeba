"""The images in the body of a request: forms and JSON, well formed and not."""

import json
import logging
import time
from base64 import b64encode
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.errors import BadRequest
from convoy.service.frontend.rest.bodies import Base64, file, of_form, of_json

TYPE = b"multipart/form-data; boundary=XX"


def part(data: bytes, disposition: str = 'form-data; name="images"; filename="a.png"', more: str = "") -> bytes:
    return f"--XX\r\ncontent-disposition: {disposition}\r\n{more}\r\n".encode() + data + b"\r\n"


def form(*files: bytes) -> bytes:
    return b"".join(map(part, files)) + b"--XX--\r\n"


def b64(data: bytes) -> dict[str, str]:
    return {"b64": b64encode(data).decode()}


def refusal(read, *arguments) -> str:
    with pytest.raises(BadRequest) as refused:
        read(*arguments)
    assert "\n" not in refused.value.message
    return refused.value.message


FILES = st.lists(
    st.binary(max_size=40) | st.sampled_from([b"\r\n--X", b"\r\n--", b"--XY", b"\r", b"\n--XX", b"\r\n\r\n"]),
    min_size=1,
    max_size=5,
)


@given(FILES, st.booleans())
def test_the_files_of_a_form_are_those_that_were_put_in(files, preceded):
    files = [each for each in files if b"--XX" not in each] or [b""]
    body = b"\r\n" * preceded + form(*files)
    assert of_form(body, TYPE, len(files)) == files
    assert of_form(body, b'multipart/form-data; charset=utf-8; boundary="XX"', len(files)) == files


@pytest.mark.parametrize("size", [(1 << 20) - 3, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_a_large_file_of_a_form_is_read_in_pieces(size):
    data = bytes(range(251)) * (size // 251) + b"\r\n--X"
    assert of_form(form(data, b"second"), TYPE, 2) == [data, b"second"]


@given(st.binary(max_size=300))
def test_no_body_of_a_form_ends_otherwise_than_in_a_refusal(noise):
    for body in (noise, b"--XX" + noise, part(b"a") + noise, part(noise, noise.hex())):
        refusal(of_form, body, TYPE, 4)


@given(st.integers(0, 90))
def test_a_form_that_is_cut_off_is_refused(end):
    whole = part(b"12345678")
    assert len(whole) < 90
    assert "it is cut off" in refusal(of_form, whole[:end] if end else b"", TYPE, 4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (form(*[b"a"] * 5), "request has more than 4 parts, want 1 to 4"),
        (b"--XX--\r\n", "request has 0 parts, want one for each image"),
        (part(b"3", 'form-data; name="top_k"') + b"--XX--", "part 0 of the form is 'top_k' and no file: parameters go"),
        (part(b"3", "form-data") + b"--XX--", "part 0 of the form is '' and no file"),
        (part(b"AA==", more="content-transfer-encoding: base64\r\n") + b"--XX--", "part 0 of the form has content-tra"),
        (part(b"a", more="x: " + "y" * 5000 + "\r\n") + b"--XX--", "request body is not the multipart/form-data that"),
        (part(b"a", more="x: y\r\n" * 20) + b"--XX--", "request body is not the multipart/form-data that its content"),
        (part(b"a", more="x\r y: z\r\n") + b"--XX--", "request body is not the multipart/form-data that its content"),
        (b"--XX \r\n\r\n\r\n--XX--", "request body is not the multipart/form-data that its content-type says"),
        (part(b"a") + b"--XX   \r\n\r\n\r\n--XX--", "request body is not the multipart/form-data that its"),
    ],
)
def test_a_form_that_is_not_of_images_is_refused(body, message):
    assert refusal(of_form, body, TYPE, 4).startswith(message)


def test_a_part_named_images_needs_no_file_name():
    body = part(b"one", 'form-data; name="image"') + part(b"two", "form-data; name=images") + b"--XX--"
    assert of_form(body, TYPE, 4) == [b"one", b"two"]


@pytest.mark.parametrize("header", [b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data;"])
def test_a_form_needs_a_boundary(header):
    assert refusal(of_form, form(b"a"), header, 4) == "content-type is multipart/form-data without a boundary"


def test_a_boundary_is_of_bounded_length():
    assert "not the multipart/form-data" in refusal(
        of_form, form(b"a"), b"multipart/form-data; boundary=" + b"X" * 900, 4
    )


@pytest.mark.parametrize(
    "filling", [b"\r\n--XXy", b"\r\n--XX", b"\r\n--X", b"\r\n--XX ", b"\r", b"\r\n", b"--XX", b" "]
)
def test_no_form_takes_long(filling):
    body = part(filling * (4_000_000 // len(filling)))
    began = time.thread_time()
    for end in (b"", b"--XX--"):
        with suppress(BadRequest):
            of_form(body + end, TYPE, 256)
    assert time.thread_time() - began < 1.0  # a parser that goes byte by byte takes several seconds


def test_broken_forms_do_not_fill_the_log(caplog):
    caplog.set_level(logging.DEBUG)
    for body in (b"nothing", b"--XXy", part(b"a", more="\x01: a\r\n")):
        refusal(of_form, body, TYPE, 4)
    assert not caplog.records


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4))
def test_the_files_of_json_are_those_that_were_put_in(files):
    assert of_json(json.dumps({"images": [b64(each) for each in files]}).encode(), 4) == files
    assert of_json(json.dumps({"image_bytes": b64(files[0])}, indent=2).encode(), 4) == files[:1]


@pytest.mark.parametrize("size", [3 << 19, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_500_001])
def test_large_base64_is_decoded_in_pieces(size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert file(Base64(b64encode(data).decode()), "x") == data


@pytest.mark.parametrize(
    "text",
    [
        *(
            "QUI",
            "QUI=QUJD",
            "QUJD QUJD",
            "QUJD\n",
            "=",
            "QUJD====",
            "QU=I",
            "Q===",
            "-_-_",
            "éééé",
            "A",
            "QUJDQQ==QUJD",
        ),
        "QUJD" * 400_000 + "QQ==" + "QUJD" * 400_000,
        "QUJD" * 349_524 + "QUI=QUJD",  # the padding ends a piece
    ],
    ids=lambda text: text[:12],
)
def test_what_is_not_base64_is_refused_with_its_place(text):
    assert refusal(file, Base64(text), "images[2].b64").startswith("images[2].b64 is not base64: ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"images": [{"b64": "QQ=="}, {"b64": 4}]}', "images[1].b64: expected `str`, got `int`"),
        (b'{"images": [{"b64": "QQ=="}, {"b64": "Q"}]}', "images[1].b64 is not base64: "),
        (b'{"images": [{}]}', "images[0]: object missing required field `b64`"),
        (b'{"images": [{"b64": "", "top_k": 1}]}', "images[0]: object contains unknown field `top_k`"),
        (b'{"image_bytes": "QQ=="}', "image_bytes: expected `object`, got `str`"),
        (b'{"top_k": 3}', "request body: object contains unknown field `top_k`"),
        (b'{"images": [], "image_bytes": {"b64": ""}}', "request body has images as well as image_bytes"),
        (b"{}", 'request body has no images, want {"images": [{"b64": ".."}]}'),
        (b"", "request body is not JSON: "),
        (b'{"images": [', "request body is not JSON: "),
        (b"\xff", "request body is not JSON: "),
        (b'{"images": [{"b64": "\xff"}]}', "request body is not JSON: "),
        (b"[1]", "request body: expected `object`, got `array`"),
        (b'{"images": ' + b"[" * 100_000, "images[0]: expected `object`, got `array`"),
        (b'{"images": ' + b'[{"b64":' * 100_000, "request has more than 4 images, want 1 to 4"),
        (b'{"images": [' + b'{"b64":""},' * 4 + b'{"b64":""}]}', "request has more than 4 images, want 1 to 4"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_json_that_is_not_of_images_is_refused(body, message):
    assert refusal(of_json, body, 4).startswith(message)


@given(st.binary(max_size=60))
def test_no_json_ends_otherwise_than_in_files_or_a_refusal(noise):
    for body in (noise, b'{"images": [' + noise, b'{"images": [{"b64": "' + noise + b'"}, 1]}'):
        with suppress(BadRequest):
            assert all(isinstance(each, bytes) for each in of_json(body, 4))
