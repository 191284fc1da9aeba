"""Export of a checkpoint to a model repository: one self-describing ONNX file that accepts raw pixels or sensor
values."""

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import onnx
import torch
from torch import nn
from torch.export import Dim

from convoy.models import checkpoint, runtime
from convoy.models.checkpoint import Description
from convoy.models.data.dataset import SplitName
from convoy.models.data.formats.folder import FolderSplit
from convoy.models.data.registry import display_name, resolve_replacement
from convoy.models.errors import VariantRefused
from convoy.models.evaluation.evaluate import evaluate
from convoy.models.export import field, parity, publish, samples, variants
from convoy.models.export.seal import sealed
from convoy.models.graph import served
from convoy.models.runtime import Step, silent
from convoy.models.settings import DEFAULT_PLAN, Plan
from convoy.service import metadata
from convoy.service.metadata import AxisName, Document, Parity, Precision, Provenance, Variant
from convoy.service.repository import MODEL_FILE

# Lower than onnxruntime's maximum: in this version, every operator these networks need has a CUDA kernel.
OPSET = 18
# Names of the free axes in the graph.
DIMENSIONS: dict[AxisName, str] = {"channel": "C", "time": "T", "depth": "D", "height": "H", "width": "W"}
EXAMPLE_SIDE = 160  # pixels, of the image a network of any size is traced with: five times the largest stride
SERVED = (".jpg", ".jpeg", ".png")  # files that a server decodes
USED_SPLITS: tuple[SplitName, ...] = ("test", "train")  # the second one for int8 ranges
SOURCE_KEY = "convoy.checkpoint"  # SHA-256 of the checkpoint a file was exported from
OUTPUTS = {
    "classification": (metadata.PROBABILITIES,),
    "segmentation": (metadata.MASK, metadata.CONFIDENCE),
}


class Traced(NamedTuple):
    """A checkpoint's network, and the equivalent fp32 graph."""

    description: Description
    network: nn.Module
    graph: onnx.ModelProto
    parity: Parity


@dataclass(frozen=True)
class Exported:
    """The file in the repository, its metadata, how many sample pictures are beside it, and a held-out picture, if a
    user's own pictures are held out."""

    path: Path
    document: Document
    samples: int = 0
    example: Path | None = None

    @property
    def version(self) -> int:
        return int(self.path.parent.name)


def export(
    path: Path,
    repository: Path,
    name: str | None = None,
    data: str | None = None,
    precision: Precision = "fp32",
    plan: Plan = DEFAULT_PLAN,
    strict: bool = False,
    step: Step = silent,
    *,
    with_samples: bool = True,
) -> Exported:
    """Exports the network of a checkpoint as the next version of a model, by default named for its architecture.

    Evaluates it on the held-out split of its data, if it has data. `data` replaces the data: a folder that has moved,
    or "" for none. Checks the graph and its parity with PyTorch, and for a precision other than fp32 also measures
    accuracy and speed against fp32, before writing. With `strict`, an unreadable image is an error. Each long step is
    announced to `step`. With samples, two held-out pictures are copied beside the file, for people who want to try the
    model. For a mask, its receptive field is checked. Raises BadModelName, BadCheckpoint, BadTraining, BadData,
    ParityRefused, VariantRefused; then nothing is written.
    """
    if name is not None:
        publish.check_name(name)
    traced = trace(path, data, strict, step)
    name = traced.description.architecture if name is None else name
    if precision == "fp32":
        network = traced.network
        if traced.description.data:
            step(f"measuring on held-out images of {display_name(traced.description.data)}")
        scores = evaluate(traced.description, network).scores if traced.description.data else {}
        graph, document = traced.graph, _document(traced.description, scores, traced.parity)
    else:
        step(f"converting to {precision}, and measuring it against fp32")
        graph, document = _variant(traced, precision, plan)
    if document.task == "segmentation":
        step("checking how far around a pixel the mask depends on the image")
        document = msgspec.structs.replace(document, receptive_field=field.of_mask(graph, document))
    # A variant would otherwise keep the properties of the library that made it.
    step("writing")
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {metadata.KEY: metadata.encode(document), SOURCE_KEY: _digest(path)})
    onnx.checker.check_model(graph, full_check=True)
    pictures = samples.held_out(traced.description) if with_samples else {}
    published = publish.publish(sealed(graph), repository, name, pictures)
    return Exported(published, document, len(pictures), _example(traced.description))


def _example(description: Description) -> Path | None:
    split = description.held_out() if description.data else None
    if not isinstance(split, FolderSplit):
        return None
    images = [entry.image for entry in split.entries]
    return next((image for image in images if image.suffix.lower() in SERVED), images[0])


def trace(path: Path, data: str | None = None, strict: bool = False, step: Step = silent) -> Traced:
    """Returns a checkpoint's network with its fp32 graph, checked against PyTorch; the arguments are as for `export`.

    Raises BadCheckpoint, BadTraining, BadData, ParityRefused.
    """
    runtime.limit_threads()
    description, network = checkpoint.load(path)
    if data is not None:
        description = msgspec.structs.replace(description, data=data and resolve_replacement(data, description.data))
    if description.data:  # before the work for which it is needed
        for split in USED_SPLITS if strict else USED_SPLITS[:1]:
            description.split(split, strict)
    step(f"tracing {description.architecture}")
    graph = onnx_graph(description, network)
    step("comparing onnxruntime with PyTorch")
    return Traced(description, network, graph, parity.check(graph, description, network))


def exported_from(path: Path, repository: Path, name: str) -> bool:
    """Returns whether a model's highest version was exported from this very checkpoint."""
    numbers = publish.versions(repository, name)
    file = repository / name / str(max(numbers, default=0)) / MODEL_FILE
    if not (file.is_file() and path.is_file()):
        return False
    properties = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    return properties.get(SOURCE_KEY) == _digest(path)


def onnx_graph(description: Description, network: nn.Module) -> onnx.ModelProto:
    """Returns the served graph: `image` uint8 (N, H, W, C), or the description's tensor, to the task's `OUTPUTS`. N and
    the free axes are dynamic."""
    tensor = description.as_tensor
    multiple = 1 if description.input is None else description.input.multiple
    module = served(description.task, description.normalisation(), network)
    # The example's sides differ from each other and from the batch: the exporter would merge equal dimensions. They are
    # large: it would treat a dimension that shrinks to 1 inside the network as a constant.
    blocks = max(4, EXAMPLE_SIDE // multiple)
    shape = [axis.size or (blocks + 2 * place) * multiple for place, axis in enumerate(tensor.axes)]
    free = {place: DIMENSIONS[axis.name] for place, axis in enumerate(tensor.axes, start=1) if axis.size is None}
    dynamic = {0: Dim("N", min=1), **{place: _multiples(name, multiple) for place, name in free.items()}}
    with _quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, *shape, dtype=getattr(torch, tensor.dtype)),),
            dynamo=True,
            input_names=[tensor.name],
            output_names=list(OUTPUTS[description.task]),
            dynamic_shapes=({**dynamic},),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return _tidy(program.model_proto, free)


def _multiples(name: str, multiple: int) -> object:
    if multiple == 1:
        # For a named dimension the exporter narrows the range, down to a single number, if it cannot prove a condition
        # for all of it. A dynamic one may get a lower bound, which the file does not keep, but is never fixed.
        return Dim.DYNAMIC
    return multiple * Dim(name, min=1, max=65_535 // multiple)


def _tidy(graph: onnx.ModelProto, free: dict[int, str]) -> onnx.ModelProto:
    # The exporter leaves stack traces with local paths on every node, and dimension names such as 8*H.
    del graph.graph.value_info[:]
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]
    for node in graph.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for value in [*graph.graph.input, *graph.graph.output]:
        del value.metadata_props[:]
        dimensions = value.type.tensor_type.shape.dim
        dimensions[0].dim_param = "N"
        if len(dimensions) > 2:  # a classifier's outputs have no image dimensions
            for place, name in free.items():
                dimensions[place].dim_param = name
    for initializer in graph.graph.initializer:
        del initializer.metadata_props[:]
    return graph


def _variant(traced: Traced, precision: Precision, plan: Plan) -> tuple[onnx.ModelProto, Document]:
    graph = variants.make(precision, traced.graph, traced.description, plan)
    outcome = variants.measure({"fp32": traced.graph, precision: graph}, traced.description, plan)[precision]
    if outcome.complaint:
        raise VariantRefused(outcome.complaint)
    return graph, _document(traced.description, outcome.quality.scores, None, outcome.variant)


def _document(
    description: Description, scores: dict[str, float], measured: Parity | None, variant: Variant | None = None
) -> Document:
    return Document(
        task=description.task,
        labels=description.labels,
        palette=description.palette,
        input=description.input,
        tensor=description.tensor,
        provenance=Provenance(
            architecture=description.architecture,
            data=display_name(description.data),
            commit=description.commit,
            metrics={name: round(score, 6) for name, score in scores.items()},
        ),
        parity=measured,
        variant=variant,
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter warns about a package it does not need (torchvision) and about deprecations inside torch.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
