"""Arrays as nested lists in JSON, read and written without an object for each number or list of a large one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from convoy.service.dtypes import DATATYPES
from convoy.service.errors import BadTensor, named
from convoy.service.ipc.slots import MAX_RANK

READ_SECONDS = 4e-8  # that a byte takes to be read
WRITE_SECONDS = 4e-8  # that a byte of an array takes to be written

_SPACE = b" \t\r\n"
_CHARACTERS = {"b": b"truefals"}  # of elements of a kind of dtype; all others have those of numbers
_NUMBER = b"0123456789+-.eE"
_PIECE = 1 << 16  # characters or elements that are converted at a time: other threads run in between
_INTEGERS = msgspec.json.Decoder(list[int])
_LISTS: dict[str, msgspec.json.Decoder[Any]] = {
    "b": msgspec.json.Decoder(list[bool]),
    "i": _INTEGERS,
    "u": _INTEGERS,
    "f": msgspec.json.Decoder(list[float]),
}
# Significant digits that distinguish all numbers of a dtype, after those that suffice for many.
_SIGNIFICANT = {np.dtype(np.float16): (4, 5), np.dtype(np.float32): (7, 8, 9)}
_FEW = 32  # numbers that numpy prints in less time than it takes to compute on arrays
_EXACT = 22  # the highest power of ten that is a double


def read(
    text: bytes, dtype: np.dtype[Any], what: str, check: Callable[[Sequence[int]], None] | None = None
) -> NDArray[Any]:
    """Returns the array that valid JSON says. The text needs five times its length for as long as it is read.

    what   names it in messages
    check  raises an error for a shape that is not wanted, before the elements are read

    Raises BadTensor if it is not numbers (true and false for bool) in lists that make a rectangle, or if a number is
    outside the dtype.
    """
    compact = text.translate(None, _SPACE)
    marks = compact.translate(None, _CHARACTERS.get(dtype.kind, _NUMBER))
    if other := marks.translate(None, b"[],"):
        raise BadTensor(f"{what} contains {_shown(compact, other[:1])}, want {_wanted(dtype)} in nested lists")
    if b"[]" in compact:
        raise BadTensor(f"{what} contains an empty list, want 1 element or more")
    shape = _shape(marks, what)
    if check is not None:
        check(shape)
    elements = compact.translate(None, b"[]")
    del compact, marks
    values = np.empty(elements.count(b",") + 1, dtype)
    at = 0
    for piece in _pieces(elements):
        converted = _converted(piece, dtype, what)
        values[at : at + len(converted)] = converted
        at += len(converted)
    return values.reshape(shape)


def write(values: NDArray[Any]) -> bytes:
    """Returns an array of finite numbers as nested lists, each with the digits that its dtype needs."""
    if values.ndim == 0:
        return msgspec.json.encode(shortest(values.reshape(1))[0])
    if values.size <= _PIECE:
        return msgspec.json.encode(_lists(values))
    if values.ndim == 1:
        pieces = (values[start : start + _PIECE] for start in range(0, len(values), _PIECE))
        return b"[" + b",".join([write(piece)[1:-1] for piece in pieces]) + b"]"
    return b"[" + b",".join([write(each) for each in values]) + b"]"


def shortest(values: NDArray[Any]) -> list[Any]:
    """Returns the numbers of an array (n,) such that floats have as few digits as distinguish them in their dtype."""
    steps = _SIGNIFICANT.get(values.dtype)
    if steps is None:
        return list(values.tolist())
    if len(values) <= _FEW:
        return [float(str(value)) for value in values]
    wide = values.astype(np.float64)
    result = wide.copy()
    left = np.flatnonzero(wide)
    for digits in steps:
        numbers = wide[left]
        powers = digits - 1 - np.floor(np.log10(np.abs(numbers))).astype(int)
        up, down = (10.0 ** np.clip(power, 0, _EXACT) for power in (powers, -powers))
        # A whole number times or divided by an exact power of ten is the double next to that decimal.
        rounded = np.rint(numbers * up / down) * down / up
        good = (rounded.astype(values.dtype) == values[left]) & (np.abs(powers) <= _EXACT)
        result[left[good]] = rounded[good]
        left = left[~good]
    result[left] = [float(str(value)) for value in values[left]]
    return list(result.tolist())


def _lists(values: NDArray[Any]) -> list[Any]:
    if not values.size:
        return list(values.tolist())
    lists = shortest(values.reshape(-1))
    for side in values.shape[:0:-1]:
        lists = [lists[start : start + side] for start in range(0, len(lists), side)]
    return lists


def _wanted(dtype: np.dtype[Any]) -> str:
    return "true or false" if dtype == np.bool_ else "numbers"


def _shown(compact: bytes, start: bytes) -> str:
    """Returns the beginning of what is no number, for a message."""
    return named(compact[compact.index(start) :][:24].decode(errors="replace"))


def _shape(marks: bytes, what: str) -> tuple[int, ...]:
    """Returns the shape of nested lists without their numbers, such as `[[,,],[,,]]`."""
    rank = len(marks) - len(marks.lstrip(b"["))
    if rank > MAX_RANK + 1:
        raise BadTensor(f"{what} is nested {rank} deep, want at most {MAX_RANK + 1}")
    shape: list[int] = []
    list_ = element = b""
    for level in reversed(range(rank)):
        # The first list at this level begins at `level`.
        end = marks.find(b"]" * (rank - level)) + rank - level
        side = (end - level - 1) // (len(list_) + 1) if shape else end - level - 1
        shape.insert(0, max(1, side))
        # A join would need 80 bytes for each of its parts.
        element, list_ = list_, b"[" + (list_ + b",") * (shape[0] - 1) + list_ + b"]"
    if list_ != marks:
        number = _different(marks[1:], element + b",")
        raise BadTensor(f"{what} is ragged: lists in its element {number} differ in length from those before")
    return tuple(shape)


def _different(marks: bytes, element: bytes) -> int:
    """Returns how many elements are like this one before another follows."""
    expected = element * (len(marks) // len(element) + 1)
    differs = np.frombuffer(marks, np.uint8) != np.frombuffer(expected, np.uint8, len(marks))
    return int(differs.argmax()) // len(element)


def _pieces(elements: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(elements):
        end = elements.find(b",", start + _PIECE)
        end = len(elements) if end < 0 else end
        yield elements[start:end]
        start = end + 1


def _converted(elements: bytes, dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Returns elements, separated by commas, as an array (n,)."""
    if dtype.kind in "iu" and elements.translate(None, b".eE") != elements:
        raise BadTensor(f"{what} has numbers with a fraction or an exponent, want whole ones: {_name(dtype)}")
    try:
        found = _LISTS[dtype.kind].decode(b"[" + elements + b"]")
    except (msgspec.DecodeError, ValueError):  # Python converts no integers of thousands of digits
        raise BadTensor(f"{what} has a number that is outside {_name(dtype)}") from None
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        for number in (min(found), max(found)):
            if not limits.min <= number <= limits.max:
                raise BadTensor(f"{what} has {named(str(number))}, which is outside {_name(dtype)}")
        return np.array(found, dtype)
    with np.errstate(over="ignore"):
        values = np.array(found, dtype)
    if dtype.kind == "f" and not np.isfinite(values).all():
        number = max(found, key=abs)
        raise BadTensor(f"{what} has {number:g}, which is outside {_name(dtype)}")
    return values


def _name(dtype: np.dtype[Any]) -> str:
    return DATATYPES[dtype.name]
