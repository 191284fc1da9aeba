"""Predictions of a network in its served form: a checkpoint run by PyTorch, or an exported file run by onnxruntime."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from convoy.models import checkpoint, paths, runtime
from convoy.models.checkpoint import Description
from convoy.models.data.dataset import Split, SplitName
from convoy.models.data.registry import DATA, resolve, resolve_replacement, split_of
from convoy.models.errors import BadCheckpoint, BadNetworkFile
from convoy.models.graph import served
from convoy.models.runtime import Session
from convoy.service import metadata
from convoy.service.errors import BadMetadata
from convoy.service.metadata import Document, InputSpec, Task, TensorInput

# The output that is compared with the targets.
PREDICTION: dict[Task, str] = {"classification": metadata.PROBABILITIES, "segmentation": metadata.MASK}


class Predictions(NamedTuple):
    """`best` contains probabilities (N, classes) float32, or masks (N, H, W) uint8; `confidence` is that of the masks,
    (N, H, W) uint8, 0..255, None for classes and for networks without a confidence output."""

    best: Tensor
    confidence: Tensor | None = None

    def of(self, chosen: Tensor) -> "Predictions":
        """Returns the predictions of the images that are true in `chosen`, (N,) bool."""
        return Predictions(self.best[chosen], None if self.confidence is None else self.confidence[chosen])


@dataclass(frozen=True)
class Predictor:
    """A runnable network. `predict` accepts served inputs, (N, H, W, C) uint8 or tensors as in `spec`. `data` is a name
    or a folder, as returned by `convoy.models.data.registry.resolve`."""

    name: str
    task: Task
    labels: list[str]
    palette: list[tuple[int, int, int]] | None
    spec: InputSpec | TensorInput
    data: str
    predict: Callable[[Tensor], Predictions]
    description: Description | None = None  # of a network that PyTorch runs

    def split(self, name: SplitName, strict: bool = False) -> Split:
        """Returns a split of its data. Raises BadTraining or BadData if the data is missing or has changed; `strict` is
        as in `convoy.models.data.registry.data_set`."""
        colour = self.spec.colour if isinstance(self.spec, InputSpec) else None
        return split_of(self.data, name, self.task, colour, self.labels, strict)


def of_path(path: Path, data: str | None = None) -> Predictor:
    """Opens an ONNX file or a checkpoint, by the suffix, with its training data or with `data`, which must have the
    same classes.

    Raises BadCheckpoint, BadNetworkFile, BadTraining.
    """
    return of_file(path, data) if path.suffix == ".onnx" else of_checkpoint(path, data)


def of_checkpoint(path: Path, data: str | None = None) -> Predictor:
    """Opens a checkpoint in PyTorch. Raises BadCheckpoint, BadTraining."""
    description, network = checkpoint.load(path)
    if data is not None:
        description = msgspec.structs.replace(description, data=resolve_replacement(data, description.data))
    if not description.data:
        raise BadCheckpoint(
            f"{path} contains weights that were not trained here: specify the data with --data, "
            "or name a checkpoint of `convoy train`"
        )
    return of_network(description, network)


def of_network(description: Description, network: nn.Module) -> Predictor:
    """Wraps a network in PyTorch and moves it to CUDA if available."""
    device = runtime.device()
    module = served(description.task, description.normalisation(), network).to(device)

    def predict(batch: Tensor) -> Predictions:
        with torch.inference_mode():
            outputs = module(batch.to(device))
        return Predictions(*(part.cpu() for part in ((outputs,) if isinstance(outputs, Tensor) else outputs)))

    return Predictor(
        name=description.architecture,
        task=description.task,
        labels=description.labels,
        palette=description.palette,
        spec=description.spec,
        data=description.data,
        predict=predict,
        description=description,
    )


def of_file(path: Path, data: str | None = None) -> Predictor:
    """Opens a file in onnxruntime as the engine does, on CUDA if available. Raises BadNetworkFile, BadTraining."""
    session = _session(path)
    document = _document(path, session)
    (input_name,) = [value.name for value in session.get_inputs()]
    confidence = [value.name for value in session.get_outputs() if value.name == metadata.CONFIDENCE]
    names = [PREDICTION[document.task], *confidence]

    def predict(batch: Tensor) -> Predictions:
        return Predictions(*map(torch.from_numpy, session.run(names, {input_name: batch.numpy()})))

    provenance = document.provenance
    return Predictor(
        name=path.parent.parent.name if provenance is None else provenance.architecture,
        task=document.task,
        labels=document.labels,
        palette=document.palette,
        spec=document.image if document.tensor is None else document.tensor,
        data=_data(path, document) if data is None else resolve(data),
        predict=predict,
    )


def _session(path: Path) -> Session:
    paths.check_exported(path)
    try:
        return runtime.session(path, runtime.providers())
    except Exception as error:  # onnxruntime raises a different class for each kind of damage
        # For a file in another format, its message is about protobuf.
        why = "" if "protobuf" in str(error).lower() else f": {runtime.error_message(error)}"
        raise BadNetworkFile(
            f"{path} is not an ONNX file that onnxruntime runs, want one that `convoy export` wrote{why}"
        ) from None


def _document(path: Path, session: Session) -> Document:
    try:
        document = metadata.decode(session.get_modelmeta().custom_metadata_map)
    except BadMetadata as error:
        raise BadNetworkFile(f"{path}: {error.message}") from None
    if document is None:
        raise BadNetworkFile(f"{path} does not describe itself, want a file that `convoy export` wrote")
    if document.task not in PREDICTION:
        raise BadNetworkFile(f"{path} is for {document.task}, want one for {' or '.join(PREDICTION)}")
    outputs = [value.name for value in session.get_outputs()]
    if PREDICTION[document.task] not in outputs or len(session.get_inputs()) != 1:
        raise BadNetworkFile(f"{path} outputs {', '.join(outputs)}, want {PREDICTION[document.task]} of one input")
    return document


def _data(path: Path, document: Document) -> str:
    name = "" if document.provenance is None else document.provenance.data
    if name in DATA:
        return name
    # A file does not contain the folder's path, because a server's clients can read its metadata.
    origin = f"was trained on data named {name!r}, without its location" if name else "does not name its data"
    raise BadNetworkFile(f"{path} {origin}: specify the data with --data")
