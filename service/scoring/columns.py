"""The columns of scored images: their types, and the values of one image's row."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from pycocotools import mask as coco

from convoy.service.errors import BadConfig, ConvoyError
from convoy.service.frontend.postprocess import Ranking
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

if TYPE_CHECKING:
    import pyarrow

Answer = Ranking | pb.Segmentation | ConvoyError | OSError
Masks = Literal["rle", "png"]
Task = Literal["classification", "segmentation"]

MASK, MASK_FILE = "mask", "mask_file"
FORMATS: Mapping[Masks, pb.MaskFormat] = {"rle": pb.MASK_FORMAT_RLE, "png": pb.MASK_FORMAT_PNG}

# What a row contains of an image that was scored; of another one it has nulls, and `error`.
COLUMNS: Mapping[Task, Sequence[str]] = {
    "classification": ("labels", "indices", "probabilities"),
    "segmentation": ("height", "width", MASK, "areas"),
}


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What scores: the columns `identity` are the same in every row."""

    task: Task
    labels: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    identity: Mapping[str, str | int]  # sha256 of the file; or the name and the version on a server


def parquet() -> Any:
    """The packages `pyarrow` and `pyarrow.parquet`. Raises BadConfig where they are not installed."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise BadConfig("Parquet needs pyarrow: pip install 'convoy[score]'") from None
    return pyarrow


def schema(model: Model, masks: Masks) -> "pyarrow.Schema":
    """The columns of a model's rows: `id`, the model, the answer, `error`. The metadata name its classes."""
    arrow = parquet()
    text, number = arrow.string(), arrow.int32()
    runs = arrow.struct([arrow.field("class_index", number), arrow.field("counts", text)])
    types = {
        "labels": arrow.list_(text),
        "indices": arrow.list_(number),
        "probabilities": arrow.list_(arrow.float32()),
        "height": number,
        "width": number,
        MASK: arrow.binary() if masks == "png" else arrow.list_(runs),
        "areas": arrow.list_(arrow.int64()),
    }
    fields = [
        arrow.field("id", text, nullable=False),
        *(
            arrow.field(name, arrow.int64() if isinstance(value, int) else text, nullable=False)
            for name, value in model.identity.items()
        ),
        *(arrow.field(name, types[name]) for name in COLUMNS[model.task]),
        arrow.field("error", text),
    ]
    about = {"task": model.task, "labels": model.labels}
    return arrow.schema(fields, metadata={"convoy": msgspec.json.encode(about)})


def values(answer: Answer, model: Model) -> dict[str, Any]:
    """The columns of one image that its answer decides: those of the task, or `error`."""
    if isinstance(answer, ConvoyError):
        return {"error": answer.message}
    if isinstance(answer, OSError):
        return {"error": answer.strerror or str(answer) or type(answer).__name__}
    if isinstance(answer, Ranking):
        labels = [model.labels[index] for index in answer.indices]
        return {"labels": labels, "indices": list(answer.indices), "probabilities": list(answer.probabilities)}
    runs = [{"class_index": each.class_index, "counts": each.counts.decode()} for each in answer.run_lengths]
    return {
        "height": answer.height_px,
        "width": answer.width_px,
        MASK: answer.mask if answer.format == pb.MASK_FORMAT_PNG else runs,
        "areas": [each.pixels for each in answer.class_pixels],
    }


def class_map(row: Mapping[str, Any]) -> Any:
    """The (height, width) uint8 mask of a row whose `mask` are run lengths."""
    import numpy as np

    size = [row["height"], row["width"]]
    mask = np.zeros(size, np.uint8)
    for run in row[MASK]:
        mask[coco.decode({"size": size, "counts": run["counts"]}) == 1] = run["class_index"]
    return mask
