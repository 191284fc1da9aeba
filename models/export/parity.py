"""Parity check: compares the outputs of an exported graph in onnxruntime with those of the PyTorch network."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from convoy.models import runtime
from convoy.models.checkpoint import Description
from convoy.models.data.batches import Batch, loader
from convoy.models.data.builtin.generated import generated
from convoy.models.errors import ParityRefused
from convoy.models.graph import served
from convoy.models.segmentation.segnet import Pool
from convoy.service import metadata
from convoy.service.metadata import Parity

MIN_IMAGES, MAX_IMAGES = 64, 256  # images that are compared
BATCH_SIZE = 24
MAX_DIFFERENCE = 1e-4  # of any probability
MIN_MASK_AGREEMENT = 0.9999  # share of pixels
MAX_CONFIDENCE_STEPS = 1  # of 255: a difference below MAX_DIFFERENCE may still change the rounding


class Difference(NamedTuple):
    """Differences over some images; a prediction is the class of an image or pixel."""

    images: int
    probabilities: float  # largest absolute difference
    confidence_steps: int  # largest, of 255
    predictions: int
    same: int


def check(graph: onnx.ModelProto, description: Description, network: nn.Module) -> Parity:
    """Compares both on held-out images, on the CPU, and measures the differences. If there are fewer than 64 images, or
    none because the weights were not trained here, 64 more are generated.

    Classification compares the graph's probabilities. Segmentation compares masks, confidences, and the probabilities
    of every class at every pixel. A served graph does not output these, so the logits are added as an output here. If
    the network uses positions of maxima, PyTorch uses the positions that onnxruntime found, provided that they are
    maxima in PyTorch too, up to rounding. Raises ParityRefused, with the amount, if a probability differs by more than
    1e-4, any top-1 differs, masks differ on more than 0.01 % of the pixels, or a confidence differs by more than one
    step.
    """
    compare = (_classifier if description.task == "classification" else _segmenter)(graph, description, network)
    differences: list[Difference] = []
    with torch.inference_mode():
        for batch, _ in _batches(description):
            differences.append(compare(batch))
            if sum(difference.images for difference in differences) >= MAX_IMAGES:
                break
    images, probabilities, steps, predictions, same = zip(*differences, strict=True)
    # numpy's max, unlike Python's, propagates NaN, which then fails the test.
    total = Difference(sum(images), float(np.max(probabilities)), max(steps), sum(predictions), sum(same))
    return _judge(description, total)


def _batches(description: Description) -> Iterator[Batch]:
    if description.data:
        held_out = description.held_out()
        yield from loader(held_out, description.spec, BATCH_SIZE)
        if len(held_out) >= MIN_IMAGES:
            return
    yield from loader(generated(description.spec), description.spec, BATCH_SIZE)


def _judge(description: Description, total: Difference) -> Parity:
    classification = description.task == "classification"
    agreement = total.same / total.predictions
    complaints = []
    if not total.probabilities <= MAX_DIFFERENCE:
        complaints.append(f"probabilities differ by up to {total.probabilities:.3g}, want at most {MAX_DIFFERENCE:g}")
    if classification and agreement < 1:
        complaints.append(f"top-1 is the same on {agreement:.2%} of images, want all")
    if not classification and agreement < MIN_MASK_AGREEMENT:
        complaints.append(f"masks are the same on {agreement:.3%} of pixels, want {MIN_MASK_AGREEMENT:.2%}")
    if total.confidence_steps > MAX_CONFIDENCE_STEPS:
        complaints.append(f"confidences differ by up to {total.confidence_steps} of 255, want {MAX_CONFIDENCE_STEPS}")
    if complaints:
        raise ParityRefused(f"onnxruntime and PyTorch disagree on {total.images} images: {'; '.join(complaints)}")
    return Parity(
        images=total.images,
        max_abs_difference=total.probabilities,
        top1_agreement=agreement if classification else None,
        mask_agreement=None if classification else agreement,
    )


def _classifier(graph: onnx.ModelProto, description: Description, network: nn.Module) -> Callable[[Tensor], Difference]:
    session = runtime.session(graph)
    module = served(description.task, description.normalisation(), network)

    def compare(batch: Tensor) -> Difference:
        torch_output = module(batch).numpy()
        (onnx_output,) = session.run([metadata.PROBABILITIES], {description.as_tensor.name: batch.numpy()})
        same = int((torch_output.argmax(axis=1) == onnx_output.argmax(axis=1)).sum())
        return Difference(len(batch), float(np.abs(torch_output - onnx_output).max()), 0, len(batch), same)

    return compare


def _segmenter(graph: onnx.ModelProto, description: Description, network: nn.Module) -> Callable[[Tensor], Difference]:
    graph, logits, choices = _with_logits(graph)
    session = runtime.session(graph)
    pools = getattr(network, "pools", ())
    assert len(pools) == len(choices), "a choice of the graph without a counterpart in the network"
    pixels = description.normalisation()
    module = served(description.task, pixels, network)

    def compare(batch: Tensor) -> Difference:
        names = [logits, metadata.MASK, metadata.CONFIDENCE, *choices]
        onnx_logits, onnx_mask, onnx_confidence, *chosen = session.run(names, {metadata.IMAGE: batch.numpy()})
        hooks = [
            pool.register_forward_hook(_choosing(torch.from_numpy(c))) for pool, c in zip(pools, chosen, strict=True)
        ]
        mask, confidence = (tensor.numpy() for tensor in module(batch))
        torch_probabilities = torch.softmax(network(pixels(batch)), dim=1)
        for hook in hooks:
            hook.remove()
        onnx_probabilities = torch.softmax(torch.from_numpy(onnx_logits), dim=1)
        return Difference(
            images=len(batch),
            probabilities=float((torch_probabilities - onnx_probabilities).abs().max()),
            confidence_steps=int(np.abs(confidence.astype(int) - onnx_confidence.astype(int)).max()),
            predictions=mask.size,
            same=int((mask == onnx_mask).sum()),
        )

    return compare


def _choosing(choices: Tensor) -> Callable[[Pool, tuple[Tensor], tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """Returns a hook for a pool that records positions of maxima. Where candidates are equal up to rounding, runtimes
    choose differently; the hook makes the pool choose as onnxruntime did."""

    def choose(pool: Pool, inputs: tuple[Tensor], outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        best, winner = outputs
        value = pool.blocks(*inputs).gather(2, choices[:, :, None])[:, :, 0]
        return best, torch.where(best - value <= MAX_DIFFERENCE, choices, winner)

    return choose


def _with_logits(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, str, list[str]]:
    # The logits are the input of the mask's argmax; any other argmax is a choice inside the network.
    makers = {output: node for node in graph.graph.node for output in node.output}
    argmax = makers[metadata.MASK]
    while argmax.op_type != "ArgMax":
        argmax = makers[argmax.input[0]]
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    choices = [node.output[0] for node in graph.graph.node if node.op_type == "ArgMax" and node != argmax]
    copy.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, [argmax.input[0], *choices]))
    return copy, argmax.input[0], choices
