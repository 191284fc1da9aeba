"""The folder of a run: what the run is, in `_score.json`, and its rows, in parts that are there whole or not at all.

A part contains the rows of a fixed slice of the source, in its order. It is written under another name, brought to the
disk and renamed: a killed run leaves no part of a part, and one that resumes writes the very bytes that are missing.
"""

import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from convoy.service.errors import BadConfig, ConvoyError, named
from convoy.service.scoring.columns import MASK, MASK_FILE, parquet
from convoy.service.scoring.score import Score

# Names that begin so are no rows: readers of Parquet pass them over in a folder that they are given.
RECORD = "_score.json"
_KEPT = ".convoy"  # a folder: the lock, and the profile of the model
ROWS = 1024  # of a part: what a kill may cost, against the number of files; a multiple of the usual batch sizes
_LOCK = "lock"
_PART = re.compile(r"part-(\d{5,})\.parquet")
TMP = ".tmp"  # also hidden
_WRITERS = 8  # threads that wait for the disk to keep a mask
_NAME = re.compile(r"[^\w.-]+")
_MOST_OF_A_NAME = 80  # characters of an id in the name of a file


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked besides its model.

    source      see `sources.listed`, as `column` and `id_column`
    rows        images in a part
    mask_files  a folder for the masks as PNG files, whose names are then in the rows; "": the masks are in the rows
    """

    source: str
    column: str = ""
    id_column: str = ""
    rows: int = ROWS
    mask_files: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the bytes of a run; a run with anything else is another one."""

    format: Literal[1] = 1
    source: str
    column: str
    id_column: str
    model: Mapping[str, str | int]  # sha256 of the file, or the name and version on a server
    weights: Mapping[str, str]  # sha256 of the files beside it that it may read, by name
    top_k: int
    masks: str
    mask_files: str
    rows: int
    batch_size: int
    provider: str

    def differences(self, other: "Record") -> list[str]:
        """What distinguishes two runs, in words."""
        return [
            f"{name.replace('_', ' ')} {_shown(getattr(self, name))}, not {_shown(getattr(other, name))}"
            for name in self.__struct_fields__
            if getattr(self, name) != getattr(other, name)
        ]


def prepared(folder: Path, score: Score, asked: Asked) -> Score:
    """Makes a locked folder that of a run, or checks that it is; returns the `Score` that continues it.

    Raises BadConfig if the folder has another run, naming what differs.
    """
    before = _recorded(folder)
    if before is not None:
        score = score.replaced(
            batch_size=score.options.batch_size or before.batch_size,
            version=score.options.version or int(before.model.get("version", 0)),
        )
    if asked.mask_files:
        score = score.replaced(masks="png")
    score = score.settled()
    backend = score.open()
    if asked.mask_files and backend.model.task != "segmentation":
        raise BadConfig("--mask-files is for segmentation: this model has no masks")
    now = Record(
        source=asked.source,
        column=asked.column,
        id_column=asked.id_column,
        model=score.identity(),
        weights=backend.weights,
        top_k=score.options.top_k,
        masks=score.options.masks,
        mask_files=asked.mask_files,
        rows=asked.rows,
        batch_size=backend.batch_size,
        provider=backend.provider,
    )
    if before is None:
        if parts(folder):
            raise BadConfig(f"{str(folder)!r} has parts of a run, but no {RECORD}: choose another folder")
        _commit(folder / RECORD, msgspec.json.format(msgspec.json.encode(now)) + b"\n")
    elif before != now:
        what = "; ".join(before.differences(now))
        raise BadConfig(f"{str(folder)!r} is of a run with {what}: choose another folder, or the same options")
    for left in folder.glob(f".*{TMP}"):  # of a run that was killed
        left.unlink(missing_ok=True)
    return score


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates a folder and keeps other runs out of it. The lock ends with its process, however that ends."""
    try:
        kept(folder).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(kept(folder) / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except (FileExistsError, NotADirectoryError):
        raise BadConfig(f"{str(folder)!r} is no folder, want one for the results") from None
    except OSError as error:
        raise BadConfig(f"{str(folder)!r} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadConfig(
                f"another run writes to {str(folder)!r}: wait for its end, or choose another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


def kept(folder: Path) -> Path:
    """The folder in it for what a run keeps besides its results."""
    return folder / _KEPT


def parts(folder: Path) -> dict[int, Path]:
    """The parts that are there, by number."""
    return {int(found[1]): each for each in folder.iterdir() if (found := _PART.fullmatch(each.name))}


def part(folder: Path, number: int) -> Path:
    """The file of a part."""
    return folder / f"part-{number:05d}.parquet"


def contents(file: Path) -> tuple[list[str], int]:
    """The ids in a part, and how many of them have an error. Raises BadConfig for a damaged one."""
    arrow = parquet()
    try:
        table = arrow.parquet.read_table(file, columns=["id", "error"])
        return table["id"].to_pylist(), len(table) - table["error"].null_count
    except (OSError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadConfig(f"{str(file)!r} cannot be read ({reason}): delete it, and run the same command") from None


def write(folder: Path, number: int, score: Score, rows: dict[str, list[Any]], asked: Asked) -> None:
    """Writes a part. Raises BadConfig if the disk is full, or cannot be written for another reason."""
    arrow = parquet()
    schema = score.schema()
    if asked.mask_files:
        rows[MASK_FILE] = _write_masks(Path(asked.mask_files), number * asked.rows, rows["id"], rows.pop(MASK))
        at = schema.get_field_index(MASK)
        schema = schema.set(at, arrow.field(MASK_FILE, arrow.string()))
    table = arrow.Table.from_pydict({name: rows[name] for name in schema.names}, schema=schema)
    sink = arrow.BufferOutputStream()
    # Everything that would change the bytes is stated, not left to a version's default.
    arrow.parquet.write_table(
        table,
        sink,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        row_group_size=max(1, len(table)),
        use_dictionary=True,
        write_statistics=True,
    )
    _commit(part(folder, number), sink.getvalue())


def _write_masks(folder: Path, first: int, ids: Sequence[str], masks: Sequence[bytes | None]) -> list[str | None]:
    """Writes masks as PNG files and returns their names: the place in the source, and the end of the id.

    They are on the disk before the part that names them is.
    """
    names = [
        f"{first + place:08d}-{_NAME.sub('-', each)[-_MOST_OF_A_NAME:].strip('-.') or 'image'}.png"
        for place, each in enumerate(ids)
    ]
    written = [(folder / name, mask) for name, mask in zip(names, masks, strict=True) if mask is not None]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    with ThreadPoolExecutor(_WRITERS, "write") as writers:
        list(writers.map(lambda each: _write(*each), written))
    _keep(folder)
    return [None if mask is None else name for name, mask in zip(names, masks, strict=True)]


def _recorded(folder: Path) -> Record | None:
    file = folder / RECORD
    try:
        return msgspec.json.decode(file.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise BadConfig(f"{str(file)!r} is not the record of a run ({error}): choose another folder") from None


def _commit(file: Path, data: Any) -> None:
    """Writes a file that is there whole or not at all, also after a loss of power."""
    # Of this process: another one may write the same part, when its machine was taken for dead.
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}-{os.getpid()}{TMP}")
    try:
        _write(temporary, data)
        temporary.replace(file)
        _keep(file.parent)
    except OSError as error:
        raise _unwritable(file, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _write(file: Path, data: Any) -> None:
    try:
        with file.open("wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        raise _unwritable(file, error) from None


def _keep(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
            raise
    finally:
        os.close(descriptor)


def _unwritable(file: Path, error: OSError) -> ConvoyError:
    return BadConfig(
        f"{str(file)!r} cannot be written: {error.strerror}; all that was committed is kept, the same command continues"
    )


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items()) or "none"
    return named(value) if isinstance(value, str) else str(value)
