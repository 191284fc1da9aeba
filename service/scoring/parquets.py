"""Images in a column of Parquet files: their bytes, a struct of bytes and path as Hugging Face writes, or paths."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from convoy.service.errors import BadConfig, BadImage, listed
from convoy.service.scoring import folders
from convoy.service.scoring.columns import parquet
from convoy.service.scoring.entries import Cell, Entry, File, Place, Refused, text
from convoy.service.scoring.lists import PATHS

if TYPE_CHECKING:
    import pyarrow as pa
SUFFIXES = (".parquet", ".pq")
_IMAGES = ("image", "img", "bytes", "image_bytes", "jpg", "jpeg", "png")  # as such columns are usually called
_MOST_GROUPS = 2  # row groups at a time: threads that read ahead cross from one to the next
_ROWS = 32  # of a row group, read together
_MOST_KEPT = 1024, 256 << 20  # rows and bytes, for threads that are behind
_IDS = 8192  # read together
_opening = Lock()  # threads that come to a group at once share it


def is_called_parquet(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def rows(name: str, path: str, column: str, id_column: str) -> Iterator[Entry]:
    """The images of the Parquet file at `path`, which is absolute, by row.

    Raises BadConfig if it is none, or has no column of images or ids.
    """
    pa = parquet()
    try:
        with pa.parquet.ParquetFile(path) as file:
            images = _column_of_images(name, file.schema_arrow, column)
            ids = _column_of_ids(name, file.schema_arrow, images, id_column)
            yield from _rows(name, path, file, images, ids)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise BadConfig(f"Parquet file {name!r} cannot be read ({_line(error)})") from None


def read(place: Cell) -> bytes:
    """Raises OSError, and BadImage for a row without an image. An image that is in a file is read from there."""
    pa = parquet()
    try:
        changed_ns = os.stat(place.path).st_mtime_ns
        with _opening:
            group = _group(place.path, place.group, place.column, changed_ns)
        value = group.value(place.row)
    except (pa.ArrowException, UnicodeDecodeError, IndexError) as error:
        raise BadImage(f"row {place.row} of row group {place.group} cannot be read ({_line(error)})") from None
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            return folders.read(folders.beside(place.path, value["path"]))
        value = value["bytes"]
    if value is None:
        raise BadImage("the row has no image")
    assert isinstance(value, bytes)
    return value


def _rows(name: str, path: str, file: Any, images: "pa.Field", ids: str | None) -> Iterator[Entry]:
    of_paths = _is_text(images.type)
    columns = [each for each in (ids, images.name if of_paths else None) if each is not None]
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if not columns:
            for row in range(count):
                yield Entry(text(f"{name}!{first + row}"), Cell(path, group, row, images.name))
        for row, values in enumerate(_values(file, group, columns) if columns else ()):
            id_ = values[ids] if ids is not None else f"{name}!{first + row}"
            if id_ is None:
                raise BadConfig(f"row {first + row} of {name!r} has no {ids!r}, want an id in each")
            place: Place = Cell(path, group, row, images.name)
            if of_paths:
                where = values[images.name]
                place = File(folders.beside(path, where)) if where else Refused("the row has no path")
            yield Entry(text(str(id_)), place)
        first += count


def _values(file: Any, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(_IDS, row_groups=[group], columns=columns, use_threads=False):
        yield from batch.to_pylist()


def _column_of_images(name: str, schema: "pa.Schema", column: str) -> "pa.Field":
    if column:
        if column not in schema.names:
            raise BadConfig(f"{name!r} has no column {column!r}, but {listed(schema.names)}")
        field = schema.field(column)
        if not (_has_bytes(field.type) or _is_text(field.type)):
            raise BadConfig(f"column {column!r} of {name!r} is {field.type}, want bytes, paths, or a struct with bytes")
        return field
    for usual, fits in ((_IMAGES, _has_bytes), (PATHS, _is_text)):
        for each in usual:
            if each in schema.names and fits(schema.field(each).type):
                return schema.field(each)
    others = [field for field in schema if _has_bytes(field.type)]
    if len(others) != 1:
        which = listed(schema.names) or "none at all"
        raise BadConfig(f"{name!r} has no column {_IMAGES[0]!r}, but {which}: name that of the images")
    return others[0]


def _column_of_ids(name: str, schema: "pa.Schema", images: "pa.Field", id_column: str) -> str | None:
    pa = parquet()
    if id_column and id_column not in schema.names:
        raise BadConfig(f"{name!r} has no column {id_column!r}, but {listed(schema.names)}")
    for each in [id_column] if id_column else ["id", "path"]:
        if each in schema.names and (_is_text(schema.field(each).type) or pa.types.is_integer(schema.field(each).type)):
            return each
    if id_column:
        raise BadConfig(f"column {id_column!r} of {name!r} is {schema.field(id_column).type}, want text or integers")
    return images.name if _is_text(images.type) else None


def _has_bytes(kind: "pa.DataType") -> bool:
    pa = parquet()
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _has_bytes(kind.field(place).type)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _is_text(kind: "pa.DataType") -> bool:
    pa = parquet()
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Group:
    """A row group's column, of which a window is kept: a single group may be larger than memory. Locked: all."""

    def __init__(self, open_: Callable[[], Iterator[Any]]) -> None:
        self._lock = Lock()
        self._open = open_
        self._restart()

    def value(self, row: int) -> Any:
        """Raises IndexError if the group has fewer rows."""
        with self._lock:
            if row < self._end - sum(map(len, self._kept)):
                self._restart()
            while row >= self._end:
                self._advance()
            end = self._end
            for column in reversed(self._kept):
                if row >= end - len(column):
                    return column[row - end + len(column)].as_py()
                end -= len(column)
        raise AssertionError(row)

    def _restart(self) -> None:
        self._batches = self._open()
        self._kept: deque[Any] = deque()
        self._end = 0

    def _advance(self) -> None:
        batch = next(self._batches, None)
        if batch is None:
            raise IndexError(f"it has {self._end} rows")
        self._kept.append(batch.column(0))
        self._end += len(batch)
        most_rows, most_bytes = _MOST_KEPT
        while len(self._kept) > 2 and (
            sum(map(len, self._kept)) > most_rows or sum(each.nbytes for each in self._kept) > most_bytes
        ):
            self._kept.popleft()


# As long as the file is the same.
@lru_cache(maxsize=_MOST_GROUPS)
def _group(path: str, group: int, column: str, changed_ns: int) -> _Group:
    file = parquet().parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    return _Group(lambda: file.iter_batches(_ROWS, row_groups=[group], columns=[column], use_threads=False))
