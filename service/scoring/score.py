"""`Score`: the work of every engine of bulk scoring, a batch of images in, a batch of rows out.

    score = Score("lenet5.onnx")
    rows = score({"id": ["a", "b"], "bytes": [first, second]})
    rows["labels"][0], rows["error"][1]

A local loop, an actor of Ray Data, Spark's `mapInPandas` and Dask's `map_partitions` all call the same class. It is
picklable, because what it opens, a session or a connection, belongs to the process and is opened with its first batch.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from convoy.service.client.credentials import PLAIN, Credentials
from convoy.service.errors import BadConfig, BadImage
from convoy.service.scoring import columns
from convoy.service.scoring.columns import COLUMNS, Answer, Masks, Model

if TYPE_CHECKING:
    import pyarrow

Read = Callable[[], bytes]  # the bytes of one image; raises OSError, BadImage


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a model; the same as the arguments of `Score`."""

    model: str
    top_k: int
    masks: Masks
    batch_size: int
    provider: str
    device: int
    threads: int
    version: int
    profiles: str
    credentials: Credentials


class Backend(Protocol):
    """A model that has been opened. Any number of threads may call it."""

    model: Model
    batch_size: int  # of its runs; 0: a server decides
    version: int  # on a server; 0: it is a file
    provider: str  # of onnxruntime; "": a server's
    weights: Mapping[str, str]  # sha256 of the files beside a model file that it may read, by name

    def answers(self, images: Iterable[Read]) -> Iterator[tuple[int, Answer]]:
        """The answer to each image, with its number, in any order. Reads `images` as fast as it can answer them.

        The same images in the same order have the same answers, to the last bit, with the same `batch_size`.
        """


_opened: dict[Options, Backend] = {}  # of this process
_opening = threading.Lock()


class Score:
    """Scores batches of images. Any number of threads may call it."""

    def __init__(
        self,
        model: str,
        *,
        top_k: int = 5,
        masks: Masks = "rle",
        batch_size: int = 0,
        provider: str = "auto",
        device: int = 0,
        threads: int = 0,
        version: int = 0,
        profiles: str = "",
        credentials: Credentials = PLAIN,
    ) -> None:
        """`model` is a model file that describes itself, or NAME@HOST:PORT, a model of a running server.

        top_k        labels of each image, for classification
        masks        how the masks of segmentation are stored: COCO run lengths of each class, or a palette PNG
        batch_size   images in a run; 0: as many as the file's profile says are fastest
        provider     auto, cpu or cuda; `device` is the number of the GPU, and `threads` those of a CPU's runs in total,
                     0: one per core
        version      of a server's model; 0: the one that serves at the first batch, also afterwards
        profiles     a folder for what other processes of a run need: the measured profile of a file, and which images
                     have ended a process; "": only the profile beside the file is read
        credentials  for the server
        Raises BadConfig.
        """
        if top_k < 1:
            raise BadConfig(f"top_k is {top_k}, want 1 or more")
        if masks not in columns.FORMATS:
            raise BadConfig(f"masks are {masks!r}, want rle or png")
        self.options = Options(
            model=model,
            top_k=top_k,
            masks=masks,
            batch_size=batch_size,
            provider=provider,
            device=device,
            threads=threads,
            version=version,
            profiles=profiles,
            credentials=credentials,
        )

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The rows of a batch, as columns: those of `schema`.

        `batch` has `id`, and `bytes`: the contents of image files. If it has `error`, images with one are not scored,
        and keep it. An image that cannot be scored has an error in its row, and nulls; no image raises an exception.
        Raises ConvoyError if the model cannot be opened, or its server does not answer.
        """
        count = len(batch["id"])
        errors = [None if _missing(error) else str(error) for error in batch.get("error", [None] * count)]
        wanted = [number for number in range(count) if errors[number] is None]
        reads = [_held(batch["bytes"][number]) for number in wanted]
        backend = self.open()
        rows: list[Mapping[str, Any]] = [{"error": error} for error in errors]
        for number, answer in backend.answers(reads):
            rows[wanted[number]] = columns.values(answer, backend.model)
        return self._columns([str(each) for each in batch["id"]], rows)

    def rows(self, ids: Sequence[str], reads: Iterable[Read], done: Callable[[bool], None]) -> dict[str, list[Any]]:
        """As a call, of images that are only read when it is their turn. `done` is called after each: did it fail?"""
        backend = self.open()
        rows: list[Mapping[str, Any]] = [{}] * len(ids)
        for number, answer in backend.answers(reads):
            rows[number] = columns.values(answer, backend.model)
            done("error" in rows[number])
        return self._columns(ids, rows)

    def table(self, batch: Mapping[str, Sequence[Any]]) -> "pyarrow.Table":
        """As a call, but returns an Arrow table."""
        return columns.parquet().Table.from_pydict(self(batch), schema=self.schema())

    def schema(self) -> "pyarrow.Schema":
        """The columns, with `id` first and `error` last. Opens the model."""
        return columns.schema(self.open().model, self.options.masks)

    def identity(self) -> Mapping[str, str | int]:
        """What says in each row which model scored it: `sha256`, or `model` and `version`. Opens the model."""
        return self.open().model.identity

    def settled(self) -> "Score":
        """The same with what would otherwise be decided anew in each process: the batch size, and the version."""
        backend = self.open()
        return self.replaced(batch_size=backend.batch_size, version=backend.version)

    def replaced(self, **changes: Any) -> "Score":
        """The same with other options."""
        return Score(**{**{name: getattr(self.options, name) for name in Options.__struct_fields__}, **changes})

    def open(self) -> Backend:
        """The model, opened once in a process. Raises ConvoyError."""
        with _opening:
            backend = _opened.get(self.options)
            if backend is None:
                backend = _opened[self.options] = _open(self.options)
                # Another process may be told what this one has found out: it is the same model here.
                _opened.setdefault(self._settled_options(backend), backend)
            return backend

    def _settled_options(self, backend: Backend) -> Options:
        return msgspec.structs.replace(self.options, batch_size=backend.batch_size, version=backend.version)

    def _columns(self, ids: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        model = self.open().model
        names = (*COLUMNS[model.task], "error")
        same = {name: [value] * len(ids) for name, value in model.identity.items()}
        return {"id": list(ids), **same, **{name: [row.get(name) for row in rows] for name in names}}


def server_of(model: str) -> tuple[str, str] | None:
    """The name and the address in NAME@HOST:PORT; None for a file."""
    name, at, target = model.rpartition("@")
    return (name, target) if at and name and "/" not in name and not Path(model).exists() else None


def _open(options: Options) -> Backend:
    if (server := server_of(options.model)) is not None:
        from convoy.service.scoring.fleet import Fleet

        return Fleet(*server, options)
    # A process that asks a server needs neither onnxruntime nor the time to load it.
    from convoy.service.scoring.network import Network

    return Network(Path(options.model), options)


def _held(data: Any) -> Read:
    def read() -> bytes:
        if _missing(data):
            raise BadImage("image is missing")
        return bytes(data)

    return read


def _missing(value: Any) -> bool:
    """Whether a value is one of those that stand for none in tables: None, and NaN in a column of pandas."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType"
