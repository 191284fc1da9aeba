"""What a model file may say about itself, and what is refused."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.errors import BadMetadata
from convoy.service.metadata import (
    KEY,
    MAX_MASK_CLASSES,
    Axis,
    Document,
    Fit,
    InputSpec,
    Parity,
    Provenance,
    TensorInput,
    decode,
    encode,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
BYTES = st.integers(0, 255)
MAX_SIDE = 65_535
MULTIPLES = st.integers(1, 1024)
INTERPOLATIONS = st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"])
COLOURS = st.sampled_from(["RGB", "L"])
FITS: st.SearchStrategy[Fit] = st.sampled_from(["stretch", "letterbox"])
FREE = st.builds(InputSpec, colour=COLOURS, multiple=MULTIPLES, fit=st.just("pad"), fill=BYTES)
PROVENANCES = st.builds(
    Provenance,
    architecture=st.text(max_size=256),
    data=st.text(max_size=256),
    commit=st.text(max_size=256),
    metrics=st.dictionaries(st.text(max_size=256), FINITE, max_size=3),
)
SHARES = st.none() | st.floats(0, 1)
PARITIES = st.builds(
    Parity,
    images=st.integers(1, 10**6),
    max_abs_difference=st.floats(0, 1),
    top1_agreement=SHARES,
    mask_agreement=SHARES,
)


@st.composite
def fixed_inputs(draw: st.DrawFn) -> InputSpec:
    multiple = draw(MULTIPLES)
    counts = st.integers(1, MAX_SIDE // multiple)
    return InputSpec(
        colour=draw(COLOURS),
        height=multiple * draw(counts),
        width=multiple * draw(counts),
        multiple=multiple,
        fit=draw(FITS),
        interpolation=draw(INTERPOLATIONS),
        fill=draw(BYTES),
    )


@st.composite
def documents(draw: st.DrawFn) -> Document:
    labels = draw(st.lists(st.text(), min_size=1, max_size=12))
    colours = st.lists(st.tuples(BYTES, BYTES, BYTES), min_size=len(labels), max_size=len(labels))
    return Document(
        task=draw(st.sampled_from(["classification", "segmentation"])),
        labels=labels,
        palette=draw(st.none() | colours),
        input=draw(fixed_inputs() | FREE),
        provenance=draw(st.none() | PROVENANCES),
        parity=draw(st.none() | PARITIES),
    )


@given(documents())
def test_document_survives_being_written_into_a_file(document: Document) -> None:
    assert decode({"author": "someone", KEY: encode(document)}) == document


def test_file_without_a_document_says_nothing() -> None:
    assert decode({}) is None
    assert decode({"author": "someone", "Convoy": "{}"}) is None


def test_shortest_document_has_the_defaults() -> None:
    document = decode({KEY: json.dumps(sound())})
    assert document == Document(
        task="classification", labels=["a", "b"], input=InputSpec(colour="L", height=8, width=8, fit="stretch")
    )
    assert document.image.interpolation == "bilinear"


def sound() -> dict[str, Any]:
    """A document that holds; the tests below spoil one thing in it."""
    return {"task": "classification", "labels": ["a", "b"], "input": {"colour": "L", "height": 8, "width": 8}}


def spoilt(path: str, value: Any) -> str:
    """The document with the value at a dotted path replaced; `...` takes it out."""
    document = sound()
    *folders, name = path.split(".")
    place = document
    for folder in folders:
        place = place.setdefault(folder, {})
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return json.dumps(document)


PARITY = {"images": 64, "max_abs_difference": 0.0}


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("schema_version", 2, "2"),
        ("schema_version", "1", "schema_version"),
        ("task", ..., "task"),
        ("task", "detection", "detection"),
        ("labels", ..., "labels"),
        ("labels", [], "labels"),
        ("labels", "ab", "labels"),
        ("labels", [1, 2], "labels"),
        ("labels", None, "labels"),
        ("palette", [[0, 0, 0]], "palette has 1 colours for 2 labels"),
        ("palette", [[0, 0, 0], [0, 0, 256]], "palette"),
        ("palette", [[0, 0, 0], [0, 0]], "palette"),
        ("palette", [[0, 0, 0], [0, 0, -1]], "palette"),
        ("input", ..., "input"),
        ("input.colour", ..., "colour"),
        ("input.colour", "BGR", "BGR"),
        ("input.height", ..., "are set together"),
        ("input.width", None, "are set together"),
        ("input.height", 0, "height"),
        ("input.height", 65_536, "height"),
        ("input.height", 8.5, "height"),
        ("input.fit", "pad", "'pad' requires a free size"),
        ("input.fit", "shrink", "shrink"),
        ("input.multiple", 0, "multiple"),
        ("input.multiple", 1025, "multiple"),
        ("input.multiple", 3, "input is 8x8, want multiples of input.multiple 3"),
        ("input.interpolation", "area", "area"),
        ("input.fill", 256, "fill"),
        ("input.mean", [0.5], "mean"),
        ("provenance", {"data": "digits"}, "architecture"),
        ("provenance", {"architecture": "a", "data": "d", "metrics": {"top1": "high"}}, "metrics"),
        ("parity", {**PARITY, "images": 0}, "images"),
        ("parity", {**PARITY, "max_abs_difference": -1e-9}, "max_abs_difference"),
        ("parity", {**PARITY, "top1_agreement": 1.01}, "top1_agreement"),
        ("author", "someone", "author"),
    ],
)
def test_document_with_one_thing_wrong_is_refused_and_named(path: str, value: Any, why: str) -> None:
    assert decode({KEY: json.dumps(sound())}) is not None
    with pytest.raises(BadMetadata) as refused:
        decode({KEY: spoilt(path, value)})
    assert why in refused.value.message
    assert refused.value.message.startswith("metadata document 'convoy'")
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "1", '"task"', "{}", "NaN", "\x00", "{'task': 1}", "\udcff"])
def test_text_that_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(BadMetadata):
        decode({KEY: text})


@pytest.mark.parametrize("name", ["a\\nb", "a\\r\\nb", "\\n", "a\\u2028b"])
def test_refusal_is_one_line_whatever_a_field_is_called(name: str) -> None:
    with pytest.raises(BadMetadata) as refused:
        decode({KEY: f'{{"{name}": 1}}'})
    assert "unknown field" in refused.value.message
    assert len(refused.value.message.splitlines()) == 1


def measured(value: float) -> Document:
    return Document(
        task="classification",
        labels=["a"],
        input=InputSpec(colour="L", height=8, width=8),
        provenance=Provenance(architecture="a", data="d", metrics={"top1": value}),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_number_that_json_lacks_is_refused_when_it_is_written(value: float) -> None:
    assert "0.98" in encode(measured(0.98))
    with pytest.raises(BadMetadata, match="metrics"):
        encode(measured(value))


@given(st.text())
def test_whatever_stands_there_is_refused_in_one_way(text: str) -> None:
    with pytest.raises(BadMetadata):
        decode({KEY: text})


def document(task: str, labels: int, spec: InputSpec) -> Document:
    return Document(task=task, labels=[str(number) for number in range(labels)], input=spec)  # type: ignore[arg-type]


def test_mask_has_a_byte_for_a_class() -> None:
    free = InputSpec(colour="L", fit="pad")
    assert document("segmentation", MAX_MASK_CLASSES, free)
    with pytest.raises(ValueError, match="257 labels, want at most 256"):
        document("segmentation", MAX_MASK_CLASSES + 1, free)
    assert document("classification", MAX_MASK_CLASSES + 1, free)


def test_class_map_covers_the_whole_image() -> None:
    cut = InputSpec(colour="L", height=8, width=8, fit="crop")
    assert document("classification", 2, cut)
    with pytest.raises(ValueError, match="crop"):
        document("segmentation", 2, cut)


def test_matching_looks_for_one_thing_in_images_of_any_size() -> None:
    free = InputSpec(colour="L", fit="pad", min_height=12, min_width=7)
    assert document("matching", 1, free)
    with pytest.raises(ValueError, match="2 labels, want 'pad' and 1"):
        document("matching", 2, free)
    with pytest.raises(ValueError, match="'stretch' and 1 labels"):
        document("matching", 1, InputSpec(colour="L", height=12, width=7))


@pytest.mark.parametrize("least", [{"min_height": 2}, {"min_width": 2}])
def test_least_size_goes_with_a_free_size(least: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="require a free size"):
        document("classification", 2, InputSpec(colour="L", height=8, width=8, **least))


def test_free_size_is_padded() -> None:
    with pytest.raises(ValueError, match="fixed one"):
        document("segmentation", 2, InputSpec(colour="L"))


@pytest.mark.parametrize(("colour", "channels"), [("RGB", 3), ("L", 1)])
def test_colour_tells_the_channels(colour: Any, channels: int) -> None:
    assert InputSpec(colour=colour).channels == channels


@pytest.mark.parametrize(
    ("height", "width", "multiple", "holds"),
    [(32, 64, 32, True), (33, 33, 11, True), (32, 33, 4, False), (33, 32, 4, False), (4, 4, 8, False)],
)
def test_fixed_size_is_one_that_the_network_takes(height: int, width: int, multiple: int, holds: bool) -> None:
    spec = InputSpec(colour="L", height=height, width=width, multiple=multiple)
    if holds:
        assert document("classification", 2, spec).input == spec
    else:
        with pytest.raises(ValueError, match=f"input is {height}x{width}, want multiples"):
            document("classification", 2, spec)


CHANNELS = Axis(name="channel", size=2, labels=["hip", "knee"])
TIME = Axis(name="time", spacing=0.01, unit="s")
WAVES = TensorInput(name="waveform", dtype="float32", axes=(CHANNELS, TIME), unit="degrees")


def test_document_of_a_tensor_survives_being_written_into_a_file() -> None:
    written = Document(task="classification", labels=["a", "b"], tensor=WAVES)
    assert decode({KEY: encode(written)}) == written
    assert written.takes is WAVES
    assert str(WAVES) == "float32 tensor 'waveform' [N, 2, time]"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"input": {"colour": "L", "height": 8, "width": 8}}, "exactly one"),
        ({"tensor": None}, "exactly one"),
        ({"task": "segmentation"}, "requires images"),
        ({"tensor": {"name": ""}}, "name"),
        ({"tensor": {"dtype": "float64"}}, "float64"),
        ({"tensor": {"axes": []}}, "axes"),
        ({"tensor": {"axes": [{"name": "time"}, {"name": "depth"}]}}, "want 'channel' among them"),
        ({"tensor": {"axes": [{"name": "time"}, {"name": "channel"}]}}, "want 'channel' among them, with its size"),
        ({"tensor": {"axes": [{"name": "channel", "size": 1}, {"name": "channel", "size": 1}]}}, "each name once"),
        ({"tensor": {"axes": [{"name": "channel", "size": 1}, {"name": "frequency"}]}}, "frequency"),
        ({"tensor": {"axes": [{"name": "channel", "size": 0}, {"name": "time"}]}}, "size"),
        ({"tensor": {"axes": [{"name": "channel", "size": 1}, {"name": "time", "spacing": 0}]}}, "spacing"),
        ({"tensor": {"axes": [{"name": "channel", "size": 1}, {"name": "time", "unit": "s"}]}}, "no spacing"),
        ({"tensor": {"axes": [{"name": "channel", "size": 1}, {"name": "time", "labels": ["a"]}]}}, "1 labels"),
        ({"tensor": {"axes": [{"name": "channel", "size": 1, "labels": []}, {"name": "time"}]}}, "0 labels"),
    ],
)
def test_document_of_a_tensor_with_one_thing_wrong_is_refused_and_named(change: dict[str, Any], why: str) -> None:
    tensor = {"name": "w", "dtype": "float32", "axes": [{"name": "channel", "size": 1}, {"name": "time"}]}
    sound: dict[str, Any] = {"task": "classification", "labels": ["a"], "tensor": tensor}
    assert decode({KEY: json.dumps(sound)}) is not None
    if isinstance(change.get("tensor"), dict):
        change = {"tensor": tensor | change["tensor"]}
    with pytest.raises(BadMetadata) as refused:
        decode({KEY: json.dumps(sound | change)})
    assert why in refused.value.message


def test_image_is_a_tensor_too() -> None:
    free = Document(task="classification", labels=["a"], input=InputSpec(colour="RGB", fit="pad"))
    assert str(free.takes) == "uint8 tensor 'image' [N, height, width, 3]"
    assert (free.takes.free, free.takes.channels, free.takes.channel_axis) == (True, 3, 2)
    assert free.takes.places((5, 7, 3)) == 35
    fixed = Document(task="classification", labels=["a"], input=InputSpec(colour="L", height=8, width=9))
    assert str(fixed.takes) == "uint8 tensor 'image' [N, 8, 9, 1]"
    assert not fixed.takes.free


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["x" * 257], "Expected `str` of length <= 256 - at `$.labels[...]`"),
        (["x"] * 65_537, "Expected `array` of length <= 65536 - at `$.labels`"),
        (["x" * 256] * 8_000, f"has {256 * 8_000 + 3 * 8_000 + 1 + 69} bytes, want at most 1048576"),
    ],
)
def test_long_document_is_refused_with_the_limit(labels: list[str], words: str) -> None:
    text = json.dumps({"task": "classification", "labels": labels, "input": {"colour": "L"}}, separators=(",", ":"))
    with pytest.raises(BadMetadata) as caught:
        decode({KEY: text})
    assert words.partition(" bytes")[2] in caught.value.message
    assert words.partition(" - at")[0].partition("has ")[0] in caught.value.message


def test_name_that_a_file_chooses_makes_no_long_message() -> None:
    with pytest.raises(BadMetadata) as caught:
        decode({KEY: json.dumps({"task": "classification", "labels": ["x"], "y" * 900_000: 1})})
    assert len(caught.value.message) < 400
