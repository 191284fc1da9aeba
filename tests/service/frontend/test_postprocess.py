"""What a caller gets of a network's answer, checked by the libraries that a caller would read it with."""

from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from convoy.service.errors import BadRequest, RunFailed
from convoy.service.frontend.postprocess import Ranking, rankings, segmentation
from convoy.service.metadata import Document, InputSpec, default_palette
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.preprocess import Placement, preprocess

FORMATS = [pb.MASK_FORMAT_RAW, pb.MASK_FORMAT_PNG, pb.MASK_FORMAT_RLE]
PROBABILITIES = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 80)),
    elements=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]),
)
MASKS = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 4))


def document(classes: int, palette: list[tuple[int, int, int]] | None = None) -> Document:
    spec = InputSpec(colour="RGB", fit="pad", multiple=8)
    labels = [f"class {i}" for i in range(classes)]
    return Document(task="segmentation", labels=labels, palette=palette, input=spec)


def whole(mask: NDArray[np.uint8]) -> Placement:
    height, width = mask.shape
    return Placement(height, width, 0, 0, height, width)


def scene(height: int, width: int, classes: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, classes, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    return np.kron(blocks, np.ones((8, 8), np.uint8))[:height, :width]


def decoded(answer: pb.Segmentation) -> NDArray[np.uint8]:
    """The class map, read without Convoy."""
    size = (answer.height_px, answer.width_px)
    if answer.format == pb.MASK_FORMAT_RAW:
        return np.frombuffer(answer.mask, np.uint8).reshape(size)
    if answer.format == pb.MASK_FORMAT_PNG:
        return np.asarray(Image.open(BytesIO(answer.mask)))
    classes = np.full(size, 255, np.uint8)
    for lengths in answer.run_lengths:
        inside = coco.decode({"size": list(size), "counts": lengths.counts}).astype(bool)
        assert (classes[inside] == 255).all(), "two classes claim one pixel"
        classes[inside] = lengths.class_index
    return classes


def ranked(probabilities: NDArray[np.float32], top_k: int) -> list[Ranking]:
    found = rankings(probabilities, probabilities.shape[1], top_k)
    assert all(isinstance(one, Ranking) for one in found)
    return [one for one in found if isinstance(one, Ranking)]


@settings(deadline=None)
@given(PROBABILITIES, st.integers(0, 50))
def test_classes_are_ranked_by_probability_and_ties_by_index(probabilities: NDArray[np.float32], top_k: int) -> None:
    for answer, row in zip(ranked(probabilities, top_k), probabilities, strict=True):
        wanted = sorted(range(len(row)), key=lambda i: (-row[i], i))[: top_k or 5]
        assert answer == (wanted, [row[i] for i in wanted])


def test_ranking_of_many_classes_is_that_of_a_full_sort() -> None:
    probabilities = np.random.default_rng(1).random((3, 20_000), np.float32).round(3)  # with many ties
    for answer, row in zip(ranked(probabilities, 300), probabilities, strict=True):
        assert answer.indices == np.lexsort((np.arange(20_000), -row))[:300].tolist()


@pytest.mark.parametrize("count", [2, 4])
def test_other_number_of_probabilities_than_labels_is_the_networks_failure(count: int) -> None:
    with pytest.raises(RunFailed, match=f"{count} probabilities for 3 labels"):
        rankings(np.full((2, count), 0.5, np.float32), 3, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("classes", [2, 200])
def test_probability_that_is_no_number_is_the_networks_failure_on_that_image_alone(value: float, classes: int) -> None:
    probabilities = np.full((3, classes), 0.5, np.float32)
    probabilities[1, 1] = value
    first, second, third = rankings(probabilities, classes, 1)
    assert isinstance(second, RunFailed)
    assert "not numbers" in second.message
    assert first == third == ([0], [0.5])


@pytest.mark.parametrize("value", [-6000.0, -0.01, 1.01, 7.0])
@pytest.mark.parametrize("classes", [2, 200])
def test_logits_in_the_place_of_probabilities_are_the_networks_failure_on_that_image_alone(
    value: float, classes: int
) -> None:
    probabilities = np.full((3, classes), 0.5, np.float32)
    probabilities[1, -1] = value
    first, second, third = rankings(probabilities, classes, 1)
    assert isinstance(second, RunFailed)
    assert second.message == "the network answered values outside 0..1 as probabilities"
    assert first == third == ([0], [0.5])


def test_probability_may_exceed_its_range_by_rounding() -> None:
    probabilities = np.array([[1.0000002, -1e-7]], np.float32)
    assert not isinstance(rankings(probabilities, 2, 1)[0], RunFailed)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("classes", [1, 2, 3, 16, 17, 256])
@pytest.mark.parametrize("size", [(64, 48), (1, 1), (37, 5)])
def test_class_map_comes_out_of_every_format(kind: pb.MaskFormat, classes: int, size: tuple[int, int]) -> None:
    mask = scene(*size, classes)
    answer = segmentation(mask, None, document(classes), whole(mask), kind)
    assert (answer.height_px, answer.width_px, answer.format) == (*size, kind)
    assert (decoded(answer) == mask).all()


@settings(deadline=None)
@given(MASKS, st.sampled_from(FORMATS))
def test_any_class_map_survives_and_is_counted(mask: NDArray[np.uint8], kind: pb.MaskFormat) -> None:
    answer = segmentation(mask, None, document(5), whole(mask), kind)
    assert (decoded(answer) == mask).all()
    counted = [(c.class_index, c.name, c.pixels) for c in answer.class_pixels]
    assert counted == [(i, f"class {i}", int((mask == i).sum())) for i in range(5)]


def test_run_lengths_are_there_for_present_classes_only() -> None:
    mask = np.array([[0, 3], [3, 0]], np.uint8)
    answer = segmentation(mask, None, document(6), whole(mask), pb.MASK_FORMAT_RLE)
    assert [lengths.class_index for lengths in answer.run_lengths] == [0, 3]
    assert not answer.mask


def test_unspecified_format_is_raw() -> None:
    mask = scene(16, 16, 3)
    answer = segmentation(mask, None, document(3), whole(mask), pb.MASK_FORMAT_UNSPECIFIED)
    assert answer.format == pb.MASK_FORMAT_RAW
    assert answer.mask == mask.tobytes()


def test_format_that_does_not_exist_is_refused() -> None:
    mask = scene(8, 8, 2)
    with pytest.raises(BadRequest, match="format is 7, want one of"):
        segmentation(mask, None, document(2), whole(mask), 7)  # type: ignore[arg-type]


def test_picture_shows_the_palette_of_the_metadata() -> None:
    palette = [(0, 0, 0), (250, 10, 20), (30, 240, 40)]
    mask = scene(32, 32, 3)
    answer = segmentation(mask, None, document(3, palette), whole(mask), pb.MASK_FORMAT_PNG)
    image = Image.open(BytesIO(answer.mask))
    assert image.mode == "P"
    assert (np.asarray(image.convert("RGB")) == np.array(palette, np.uint8)[mask]).all()


def test_default_colours_are_those_of_pascal_voc_and_all_differ() -> None:
    assert default_palette(5) == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert default_palette(256)[255] == (224, 224, 192)
    assert len(set(default_palette(256))) == 256


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("source", "spec"),
    [
        ((20, 28), InputSpec(colour="L", multiple=16, fit="pad")),
        ((20, 28), InputSpec(colour="L", height=64, width=56, interpolation="nearest")),
        ((20, 40), InputSpec(colour="L", height=80, width=80, fit="letterbox", fill=1, interpolation="nearest")),
    ],
)
def test_answer_has_the_size_of_the_image_that_was_sent(
    kind: pb.MaskFormat, source: tuple[int, int], spec: InputSpec
) -> None:
    sent = scene(*source, 4)[:, :, None]
    size = (32, 32) if spec.fit == "pad" else (spec.height or 0, spec.width or 0)
    at_input = np.empty((*size, 1), np.uint8)
    placement = preprocess(sent, spec, at_input)
    mask = at_input[:, :, 0]
    answer = segmentation(mask, 50 + mask, document(4), placement, kind)
    assert (decoded(answer) == sent[:, :, 0]).all()
    assert [c.pixels for c in answer.class_pixels] == np.bincount(sent.ravel(), minlength=4).tolist()
    if kind == pb.MASK_FORMAT_PNG:
        image = Image.open(BytesIO(answer.confidence))
        assert image.mode == "L"
        confidence = np.asarray(image)
    else:
        confidence = np.frombuffer(answer.confidence, np.uint8).reshape(source)
    assert (confidence == 50 + sent[:, :, 0]).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_confidence_comes_only_when_it_was_asked_for(kind: pb.MaskFormat) -> None:
    mask = scene(8, 8, 2)
    assert not segmentation(mask, None, document(2), whole(mask), kind).confidence
    assert segmentation(mask, mask, document(2), whole(mask), kind).confidence


@pytest.mark.parametrize("kind", FORMATS)
def test_class_without_a_label_is_the_networks_failure(kind: pb.MaskFormat) -> None:
    mask = np.array([[0, 1], [2, 1]], np.uint8)
    assert segmentation(mask, None, document(3), whole(mask), kind).class_pixels[2].pixels == 1
    with pytest.raises(RunFailed, match="class 2, its metadata name 2 classes"):
        segmentation(mask, None, document(2), whole(mask), kind)


def test_smooth_class_map_is_smaller_as_png_and_run_lengths() -> None:
    mask = scene(256, 256, 3)
    raw, png, lengths = (segmentation(mask, None, document(3), whole(mask), kind).ByteSize() for kind in FORMATS)
    assert all(smaller * 4 < raw for smaller in (png, lengths))
    assert all(a != b for a, b in pairwise((raw, png, lengths)))
