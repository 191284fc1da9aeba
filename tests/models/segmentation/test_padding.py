"""What padding an image to a bucket does to its mask: nothing, but where a pixel sees what lies beyond the image."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from convoy.models import checkpoint, zoo
from convoy.models.analysis.summary import inspect_architecture
from convoy.models.export.export import onnx_graph
from convoy.models.registry import Argument
from convoy.service.buckets import Buckets, Size
from convoy.service.metadata import InputSpec
from convoy.service.preprocess import input_size, preprocess, restore

IMAGE = (150, 133)
OWN = (152, 136)  # rounded up to what the networks below take
BUCKETS = ((152, 192), (192, 152), (216, 200))
CLASSES = 3


class Served:
    """A U-Net with random weights as it is served: images of any size in, masks of their size out."""

    def __init__(self, arguments: dict[str, Argument], file: Path) -> None:
        described = zoo.untrained("unet", file, CLASSES, arguments=arguments)
        assert described.input is not None
        self.spec: InputSpec = described.input
        self.arguments = arguments
        graph = onnx_graph(*checkpoint.load(file))
        self.session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def segment(self, image: NDArray[np.uint8], buckets: tuple[Size, ...] = ()) -> tuple[NDArray[Any], NDArray[Any]]:
        """The mask and the confidence of an image, each (H, W)."""
        out = np.zeros(
            (1, *input_size(self.spec, *image.shape[:2], buckets=Buckets(buckets)), self.spec.channels), np.uint8
        )
        placement = preprocess(image, self.spec, out[0])
        mask, confidence = self.session.run(None, {"image": out})
        return restore(mask[0], placement), restore(confidence[0], placement)

    def sees_beyond(self, bucket: Size) -> NDArray[Any]:
        """(H, W): whether a pixel sees any place of the bucket that the image's own size does not have."""
        fields = inspect_architecture("unet", bucket, CLASSES, self.spec.channels, self.arguments).rows[-1].fields
        rows, columns = (
            np.array([padded > own and field.at(place)[1] >= own for place in range(side)])
            for field, side, own, padded in zip(fields, IMAGE, OWN, bucket, strict=True)
        )
        return rows[:, None] | columns[None, :]


@pytest.fixture(scope="module", params=[2, 3], ids=["depth 2", "depth 3"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served({"depth": request.param, "width": 8}, tmp_path_factory.mktemp("networks") / "random.ckpt")


def picture(network: Served) -> NDArray[Any]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (10, 9, network.spec.channels))
    image = np.kron(coarse, np.ones((15, 15, 1), int))[: IMAGE[0], : IMAGE[1]]
    return np.clip(image + random.integers(-30, 31, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("bucket", BUCKETS, ids=["wider", "taller", "both"])
def test_pixels_that_do_not_see_the_padding_have_the_same_answer(network: Served, bucket: Size) -> None:
    image = picture(network)
    (mask, confidence), (padded, padded_confidence) = network.segment(image), network.segment(image, (bucket,))
    assert mask.shape == padded.shape == IMAGE
    border = network.sees_beyond(bucket)
    assert 0.1 < border.mean() < 0.9
    assert len(np.unique(mask[~border])) == CLASSES  # else any answer would be the right one
    assert (mask == padded)[~border].all()
    # Sums of other lengths are added up in another order: a probability may be rounded the other way.
    assert np.abs(confidence.astype(int) - padded_confidence)[~border].max() <= 1


def test_pixels_that_see_the_padding_may_differ(network: Served) -> None:
    """So that the test above would notice."""
    image = picture(network)
    (_, confidence), (_, padded) = network.segment(image), network.segment(image, BUCKETS[-1:])
    far = np.abs(confidence.astype(int) - padded) > 1
    assert far.any()
    assert not far[~network.sees_beyond(BUCKETS[-1])].any()


def test_bucket_of_the_own_size_changes_nothing_at_all(network: Served) -> None:
    image = picture(network)
    for own, padded in zip(network.segment(image), network.segment(image, (OWN,)), strict=True):
        assert (own == padded).all()
