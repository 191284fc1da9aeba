"""Values that cannot be what a file's metadata declare are found, row by row; others are nobody's business."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from convoy.service import declared
from convoy.service.metadata import Document, InputSpec
from tests.service import networks
from tests.service.calls import infer_request, method, outputs, reason
from tests.service.running import Server


def document(task: Literal["classification", "segmentation", "matching"]) -> Document:
    labels = ["one"] if task == "matching" else ["one", "two", "three"]
    return Document(task=task, labels=labels, input=InputSpec(colour="L", fit="pad", min_height=2, min_width=3))


F4 = np.float32


@pytest.mark.parametrize(
    ("task", "name", "good", "bad", "words"),
    [
        ("classification", "probabilities", [0.2, 0.5, 0.3], [0.2, np.nan, 0.3], "not numbers"),
        ("classification", "probabilities", [1.0005, 0, 0], [1.01, 0, 0], "outside 0..1 as probabilities"),
        ("classification", "probabilities", [0, 0, 1], [-np.inf, 0, 1], "not numbers"),
        ("matching", "heat_map", [-1.0005, 0, 1], [-1.01, 0, 1], "outside -1..1 as similarities"),
        ("matching", "heat_map", [0, 0, 0], [0, 0, np.nan], "not numbers"),
        ("matching", "score", 1.0, np.inf, "scores that are not numbers"),
        ("matching", "location", [0, 7], [-1, 7], "answered -1 as a row or column"),
        ("segmentation", "mask", [[0, 2]], [[0, 3]], "answered class 3, its metadata name 3 classes"),
    ],
)
def test_row_with_impossible_values_is_found(
    task: Literal["classification", "segmentation", "matching"], name: str, good: object, bad: object, words: str
) -> None:
    dtype = {"mask": np.uint8, "location": np.int64}.get(name, F4)
    rows: NDArray[np.generic] = np.array([good, bad, good], dtype)
    found = declared.wrong_rows(document(task), name, rows)
    assert list(found) == [1]
    assert words in found[1]
    assert declared.wrong_rows(document(task), name, rows[::2]) == {}


def test_what_is_not_declared_is_not_judged() -> None:
    odd = np.full((2, 3), np.nan, F4)
    assert declared.wrong(None, "probabilities", odd) == ""
    assert declared.wrong(document("classification"), "logits", odd) == ""
    assert declared.wrong(document("segmentation"), "probabilities", odd) == ""
    assert declared.wrong(document("classification"), "probabilities", odd[:0]) == ""


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    root: Path = tmp_path_factory.mktemp("repository")
    networks.save(networks.logits_of_bright_images(), root, "odd")
    networks.save(networks.logits(), root, "logits")
    networks.save(networks.copies(), root, "copies")
    with Server(root, ["server.lame_duck_seconds=0"]) as server, grpc.insecure_channel(server.grpc) as channel:
        yield channel


def test_tensors_of_a_declared_task_are_judged_alone_and_together(channel: grpc.Channel) -> None:
    infer = method(channel, "ModelInfer")
    dim, bright = np.full((1, 8, 8, 1), 60, np.uint8), np.full((1, 8, 8, 1), 250, np.uint8)
    calls = [infer.future(infer_request("odd", image, "image", "UINT8")) for image in (dim, bright) * 8]
    for number, call in enumerate(calls):
        if number % 2:
            error = call.exception()
            assert (error.code(), reason(error)) == (grpc.StatusCode.INTERNAL, "RUN_FAILED")
        else:
            assert outputs(call.result())["probabilities"].max() <= 1
    both = infer.future(infer_request("odd", np.concatenate([dim, bright]), "image", "UINT8"))
    assert reason(both.exception()) == "RUN_FAILED"


def test_network_that_answers_logits_as_probabilities_is_not_served(channel: grpc.Channel) -> None:
    image = np.zeros((1, 8, 8, 1), np.uint8)
    error = method(channel, "ModelInfer").future(infer_request("logits", image, "image", "UINT8")).exception()
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "outside 0..1" in error.details()


def test_network_that_declares_nothing_may_answer_anything(channel: grpc.Channel) -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0]], F4)
    found = outputs(method(channel, "ModelInfer")(infer_request("copies", values)))["y"]
    assert found.tobytes() == values.tobytes()
