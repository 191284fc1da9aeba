"""What the tests of every segmentation network ask of it."""

from typing import TypeVar

import numpy as np
import onnxruntime
import torch
from torch import nn

from convoy.models.checkpoint import Description
from convoy.models.export.export import onnx_graph
from convoy.models.graph import served
from convoy.models.zoo import randomise
from convoy.service.metadata import InputSpec

SIZES = ((1, 1, 1), (3, 33, 47), (1, 70, 61), (3, 64, 32))  # images, height, width

Network = TypeVar("Network", bound=nn.Module)


def settled(network: Network) -> Network:
    """The network, in eval mode, with random weights of which each has something to say."""
    channels = next(layer.in_channels for layer in network.modules() if isinstance(layer, nn.Conv2d))
    generator = torch.Generator().manual_seed(0)
    randomise(network, torch.randn(4, channels, 65, 64, generator=generator))
    return network.eval()


def assert_exports(network: nn.Module) -> None:
    """onnxruntime answers the exported graph as PyTorch does."""
    network = settled(network)
    description = Description(
        architecture="",
        arguments={},
        task="segmentation",
        input=InputSpec(colour="RGB", fit="pad"),
        data="",
        labels=list("abcd"),
        palette=None,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    graph = onnx_graph(description, network)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    assert_answers(session, served("segmentation", description.normalisation(), network))


def assert_answers(session: onnxruntime.InferenceSession, module: nn.Module) -> None:
    """A graph answers as PyTorch does, at sizes other than those it was traced with."""
    random = np.random.default_rng(0)
    classes: set[int] = set()
    for shape in SIZES:
        images = random.integers(0, 256, (*shape, 3), np.uint8)
        mask, confidence = session.run(None, {"image": images})
        with torch.inference_mode():
            expected_mask, expected_confidence = (value.numpy() for value in module(torch.from_numpy(images)))
        assert mask.shape == shape
        # Of some thousand pixels one may lie on the edge of two classes.
        assert (mask != expected_mask).sum() <= mask.size // 2000
        assert np.abs(confidence.astype(int) - expected_confidence.astype(int)).max() <= 1
        classes |= set(np.unique(mask).tolist())
    assert len(classes) > 1  # else any answer would be the right one
