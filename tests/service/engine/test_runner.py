"""Each request of a batch gets its own rows, and a bad one fails alone."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from convoy.service import metadata
from convoy.service.engine import runner
from convoy.service.engine.buffers import Buffer
from convoy.service.engine.providers import CPU, CUDA
from convoy.service.engine.runner import Ended, run
from convoy.service.engine.session import DeviceLost, Session, load
from convoy.service.errors import BadTensor, EngineDied, RunFailed
from convoy.service.ipc.channel import Answer, Failure, Request
from convoy.service.ipc.slots import SPILLED, Arena, Span, mark_of
from convoy.service.repository import TensorSpec
from tests.service import networks
from tests.service.descriptors import open_descriptors

F4 = np.dtype(np.float32)
Arrays = Sequence[NDArray[Any]]


@pytest.fixture
def segmenter(loaded: Callable[[onnx.ModelProto], Session]) -> Session:
    return loaded(networks.segmenter())


class FakeSession:
    """A network that is one function; remembers what it was given."""

    def __init__(
        self, network: Callable[[Arrays], Arrays], outputs: int = 1, batched: bool = True, document: object = None
    ) -> None:
        self._network = network
        self.inputs = (TensorSpec("x", "float32", (None, 4), ("N", "")),)
        self.outputs = tuple(TensorSpec(f"y{number}", "float32", (None, 4), ("N", "")) for number in range(outputs))
        self.batched = batched
        self.document = document
        self.apart = ""
        self.input_buffers = (Buffer(),)
        self.padding: dict[Any, dict[int, int]] = {}
        self.given: list[Arrays] = []

    def run_apart(self, reason: str) -> None:
        self.apart = reason
        self.batched = False

    def rooms(self, arrays: Arrays, slots: object) -> Sequence[NDArray[Any] | None]:
        return ()

    def run(self, arrays: Arrays, rooms: Sequence[NDArray[Any] | None] = ()) -> Arrays:
        self.given.append(arrays)
        return self._network(arrays)


class FrontEnd:
    """The other side: fills slots, reads what comes back."""

    def __init__(self) -> None:
        self.arena = Arena(1 << 20)
        self._ids = 0

    def request(self, inputs: Arrays, output_bytes: Sequence[int], rows: int = 0) -> Request:
        """`output_bytes` of 0: how large that output becomes is not known."""
        given = []
        for number, values in enumerate(inputs):
            offset, _ = self.arena.allocate(values.nbytes)
            given.append(Span(number, offset, values.nbytes, values.dtype.name, values.shape))
            self.arena.mapping.array(given[-1])[...] = values
        wanted = [
            Span(number, self.arena.allocate(nbytes)[0], nbytes, "uint8", (nbytes,))
            for number, nbytes in enumerate(output_bytes)
        ]
        self._ids += 1
        rows = rows or (inputs[0].shape[0] if inputs else 1)
        return Request(
            id=self._ids,
            source=1,
            rows=rows,
            arrived=0.0,
            model="model",
            version=1,
            inputs=tuple(given),
            outputs=tuple(wanted),
            memory=self.arena.mapping,
        )

    def outputs(self, end: Ended) -> list[NDArray[Any]]:
        """The outputs of an answer, in the order that was asked for; closes what came beside it."""
        record, descriptors = end[0], list(end[1])
        assert isinstance(record, Answer), record
        found = []
        for span in record.outputs:
            if span.offset == SPILLED:
                data = os.pread(descriptors[0], span.nbytes, 0)
                os.close(descriptors.pop(0))
                found.append(np.frombuffer(data, span.dtype).reshape(span.shape))
            else:
                found.append(self.arena.mapping.array(span).copy())
        assert not descriptors
        return found


@pytest.fixture
def front_end() -> Iterator[FrontEnd]:
    made = FrontEnd()
    yield made
    os.close(made.arena.descriptor)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[onnx.ModelProto], Session]:
    return lambda model: load(networks.save(model, tmp_path, "model"), "cpu", 0, 1)


def rows_of(number: float, rows: int) -> NDArray[np.float32]:
    return np.full((rows, 4), number, np.float32) + np.arange(rows, dtype=np.float32)[:, None] / 100


def double(arrays: Arrays) -> Arrays:
    return [arrays[0] * 2]


def test_each_request_gets_its_own_rows(front_end: FrontEnd) -> None:
    session = FakeSession(double)
    inputs = [rows_of(number, rows) for number, rows in enumerate((1, 3, 2))]
    requests = [front_end.request([values], [values.nbytes]) for values in inputs]
    ran = run(session, requests)
    assert len(session.given) == 1
    assert [end[0].id for end in ran.ended] == [request.id for request in requests]
    for values, end in zip(inputs, ran.ended, strict=True):
        assert not end[1]
        (found,) = front_end.outputs(end)
        assert (found == values * 2).all()


def test_batch_tells_its_size_and_times_in_order(front_end: FrontEnd) -> None:
    values = rows_of(1, 3)
    ran = run(FakeSession(double), [front_end.request([values], [values.nbytes]) for _ in range(2)])
    ((size, times),) = ran.batches
    assert size == 6
    assert 0 < times.gather <= times.run <= times.scatter <= times.done
    assert all(isinstance(end[0], Answer) and end[0].batch_size == 6 for end in ran.ended)
    assert all(isinstance(end[0], Answer) and end[0].times == times for end in ran.ended)


def test_single_request_is_not_copied_and_several_are(front_end: FrontEnd) -> None:
    session = FakeSession(double)
    memory = np.frombuffer(front_end.arena.mapping.bytes_at(0, front_end.arena.nbytes), np.uint8)
    requests = [front_end.request([rows_of(number, 2)], [32]) for number in range(2)]
    run(session, requests[:1])
    run(session, requests)
    assert np.shares_memory(session.given[0][0], memory)
    assert not np.shares_memory(session.given[1][0], memory)


def test_only_the_outputs_that_were_asked_for_are_answered(front_end: FrontEnd) -> None:
    session = FakeSession(lambda arrays: [arrays[0], arrays[0] + 1, arrays[0] + 2], outputs=3)
    request = front_end.request([rows_of(5, 1)], [16, 16, 16])
    second = request.outputs[2]
    request = msgspec.structs.replace(request, outputs=(second,))
    (end,) = run(session, [request]).ended
    assert isinstance(end[0], Answer)
    assert [span.number for span in end[0].outputs] == [2]
    assert (front_end.outputs(end)[0] == rows_of(7, 1)).all()


def test_inputs_of_other_front_ends_ride_in_one_batch(front_end: FrontEnd) -> None:
    other = FrontEnd()
    requests = [front_end.request([rows_of(1, 1)], [16]), other.request([rows_of(2, 2)], [32])]
    mine, theirs = run(FakeSession(double), requests).ended
    assert (front_end.outputs(mine)[0] == rows_of(1, 1) * 2).all()
    assert (other.outputs(theirs)[0] == rows_of(2, 2) * 2).all()
    os.close(other.arena.descriptor)


def test_output_of_unknown_size_travels_in_a_file_of_its_own(front_end: FrontEnd) -> None:
    before = open_descriptors()
    requests = [front_end.request([rows_of(number, number)], [0]) for number in (1, 2)]
    ran = run(FakeSession(double), requests)
    assert len(open_descriptors() - before) == 2
    for number, end in zip((1, 2), ran.ended, strict=True):
        assert isinstance(end[0], Answer)
        assert end[0].outputs[0].offset == SPILLED
        assert (front_end.outputs(end)[0] == rows_of(number, number) * 2).all()
    assert open_descriptors() <= before


def test_output_that_does_not_fit_its_room_spoils_no_neighbour(front_end: FrontEnd) -> None:
    request = front_end.request([rows_of(1, 4)], [8])  # 64 bytes come
    offset, nbytes = front_end.arena.allocate(64)
    front_end.arena.mapping.bytes_at(offset, nbytes)[:] = 0xAB
    (end,) = run(FakeSession(double), [request]).ended
    assert (front_end.outputs(end)[0] == rows_of(1, 4) * 2).all()
    assert (front_end.arena.mapping.bytes_at(offset, nbytes) == 0xAB).all()


def test_output_in_another_memory_order_arrives_as_it_is(front_end: FrontEnd) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    session = FakeSession(lambda arrays: [np.asfortranarray(arrays[0])])
    (end,) = run(session, [front_end.request([values], [values.nbytes])]).ended
    assert (front_end.outputs(end)[0] == values).all()


def test_scalar_output_keeps_its_shape(front_end: FrontEnd) -> None:
    session = FakeSession(lambda arrays: [np.array(3, np.float32)], batched=False)
    for nbytes in (4, 0):  # in its room, and in a file of its own
        (end,) = run(session, [front_end.request([rows_of(1, 1)], [nbytes])]).ended
        (found,) = front_end.outputs(end)
        assert found.shape == ()
        assert found == 3


def test_failed_scatter_leaves_no_file_behind(front_end: FrontEnd) -> None:
    requests = [front_end.request([rows_of(number, 1)], [0]) for number in (1, 2)]
    known = requests[1].outputs[0]
    never_was = known._replace(number=5)
    requests[1] = msgspec.structs.replace(requests[1], outputs=(known, never_was))
    before = open_descriptors()
    good, bad = run(FakeSession(double), requests).ended
    assert isinstance(bad[0], Failure)
    assert bad[1] == ()
    assert len(open_descriptors() - before) == 1  # the good one's, which goes with its answer
    assert (front_end.outputs(good)[0] == rows_of(1, 1) * 2).all()
    assert open_descriptors() <= before


@pytest.mark.parametrize("requests", [1, 3])
def test_lost_device_is_not_tried_again_and_nothing_is_answered(front_end: FrontEnd, requests: int) -> None:
    def lost(arrays: Arrays) -> Arrays:
        raise DeviceLost("CUDA failure 700")

    session = FakeSession(lost)
    with pytest.raises(DeviceLost):
        run(session, [front_end.request([rows_of(number, 1)], [16]) for number in range(requests)])
    assert len(session.given) == 1


def test_device_lost_while_requests_run_alone_ends_them_all(front_end: FrontEnd) -> None:
    def network(arrays: Arrays) -> Arrays:
        raise RuntimeError if len(arrays[0]) > 1 else DeviceLost

    session = FakeSession(network)
    with pytest.raises(DeviceLost):
        run(session, [front_end.request([rows_of(number, 1)], [16]) for number in range(3)])
    assert len(session.given) == 2  # together, and the first alone


def test_bad_request_of_a_batch_fails_alone(front_end: FrontEnd) -> None:
    def network(arrays: Arrays) -> Arrays:
        if (arrays[0] < 0).any():
            raise RuntimeError("Non-zero status code at /secret/place")
        return double(arrays)

    session = FakeSession(network)
    requests = [front_end.request([rows_of(number, 2)], [32]) for number in (1, -5, 3)]
    ran = run(session, requests)
    good, bad, also_good = ran.ended
    assert (front_end.outputs(good)[0] == rows_of(1, 2) * 2).all()
    assert (front_end.outputs(also_good)[0] == rows_of(3, 2) * 2).all()
    assert isinstance(bad[0], Failure)
    assert bad[0].id == requests[1].id
    assert isinstance(bad[0].error, RunFailed)
    assert "secret" not in bad[0].error.message
    assert [size for size, _ in ran.batches] == [2, 2]  # what ran, and nothing of what did not
    assert len(session.given) == 4


def images(front_end: FrontEnd, values: NDArray[np.float32], output_bytes: int) -> Request:
    """Images that share a slot, as one request for many has them."""
    request = front_end.request([values], [output_bytes])
    return msgspec.structs.replace(request, image=(1, 4), apart=True)


def negative_fails(arrays: Arrays) -> Arrays:
    if (arrays[0] < 0).any():
        raise RuntimeError("no such number")
    return double(arrays)


def test_bad_image_of_several_in_a_slot_fails_alone(front_end: FrontEnd) -> None:
    values = rows_of(1, 4)
    values[2] = -1
    session = FakeSession(negative_fails)
    request = images(front_end, values, 64)
    (done,) = run(session, [request, images(front_end, rows_of(3, 2), 32)]).ended[:1]
    assert isinstance(done[0], Answer)
    assert (done[0].id, done[0].failed) == (request.id, (2,))
    (found,) = front_end.outputs(done)
    assert found.shape == (4, 4)
    assert (found[[0, 1, 3]] == values[[0, 1, 3]] * 2).all()


def test_images_that_all_fail_are_one_failure(front_end: FrontEnd) -> None:
    (done,) = run(FakeSession(negative_fails), [images(front_end, rows_of(-5, 3), 48)]).ended
    assert isinstance(done[0], Failure)
    assert isinstance(done[0].error, RunFailed)


def test_image_whose_outputs_do_not_fit_fails_and_leaves_no_file_behind(front_end: FrontEnd) -> None:
    def network(arrays: Arrays) -> Arrays:
        if len(arrays[0]) > 1:
            raise RuntimeError("not together")
        return double(arrays) if arrays[0][0, 0] < 2 else [np.zeros((1, 9), F4)]

    values = np.concatenate([rows_of(1, 1), rows_of(2, 1)])
    before = open_descriptors()
    (done,) = run(FakeSession(network), [images(front_end, values, 32)]).ended
    assert isinstance(done[0], Answer)
    assert done[0].failed == (1,)
    assert open_descriptors() <= before


def test_tensors_of_several_rows_fail_as_one(front_end: FrontEnd) -> None:
    values = rows_of(1, 4)
    values[2] = -1
    session = FakeSession(negative_fails)
    (done,) = run(session, [front_end.request([values], [64])]).ended
    assert isinstance(done[0], Failure)
    assert len(session.given) == 1


def test_good_batch_is_run_once(front_end: FrontEnd) -> None:
    session = FakeSession(double)
    run(session, [front_end.request([rows_of(1, 1)], [16]) for _ in range(5)])
    assert len(session.given) == 1


def test_tensor_outside_its_memory_fails_alone_and_says_so(front_end: FrontEnd) -> None:
    requests = [front_end.request([rows_of(number, 1)], [16]) for number in (1, 2)]
    outside = requests[1].inputs[0]._replace(offset=front_end.arena.nbytes)
    requests[1] = msgspec.structs.replace(requests[1], inputs=(outside,))
    good, bad = run(FakeSession(double), requests).ended
    assert isinstance(good[0], Answer)
    assert isinstance(bad[0], Failure)
    assert isinstance(bad[0].error, BadTensor)


@pytest.mark.parametrize(
    "output", [np.zeros((3, 4), F4), np.zeros((1, 4), F4), np.zeros((0, 4), F4), np.zeros((), F4)], ids=np.shape
)
def test_wrong_row_count_of_a_network_that_says_what_it_is_fails(
    front_end: FrontEnd, output: NDArray[np.float32]
) -> None:
    session = FakeSession(lambda arrays: [output], document="a document")
    (end,) = run(session, [front_end.request([rows_of(1, 2)], [0])]).ended
    assert isinstance(end[0], Failure)
    assert isinstance(end[0].error, RunFailed)


def test_batch_that_comes_with_other_rows_is_not_shared_out_and_is_the_last_one(front_end: FrontEnd) -> None:
    session = FakeSession(lambda arrays: [arrays[0][:1] * 2])
    requests = [front_end.request([rows_of(number, 1)], [0]) for number in (1, 2, 3)]
    for end, number in zip(run(session, requests).ended, (1, 2, 3), strict=True):
        assert (front_end.outputs(end)[0] == 2 * rows_of(number, 1)).all()
    assert session.apart.startswith("output 'y0' has shape [1, 4] for 3 rows")
    session.given.clear()
    run(session, requests)
    assert [len(given[0]) for given in session.given] == [1, 1, 1]


def test_rows_that_fit_by_chance_are_not_shared_out_where_declared_sides_are_others(front_end: FrontEnd) -> None:
    session = FakeSession(lambda arrays: [np.zeros((len(arrays[0]), 5), np.float32)])
    ends = run(session, [front_end.request([rows_of(number, 1)], [0]) for number in (1, 2)]).ended
    assert [front_end.outputs(end)[0].shape for end in ends] == [(1, 5), (1, 5)]
    assert "has shape [2, 5] for 2 rows" in session.apart


@pytest.mark.parametrize(("name", "row"), [("mask", (3, 4)), ("confidence", (4, 3)), ("probabilities", (3,))])
def test_output_with_other_sides_than_the_metadata_declare_is_a_failed_run(
    front_end: FrontEnd, name: str, row: tuple[int, ...]
) -> None:
    kind = networks.segmenter if name != "probabilities" else networks.classifier
    (entry,) = kind().metadata_props
    document = metadata.decode({entry.key: entry.value})
    session = FakeSession(lambda arrays: [np.zeros((len(arrays[0]), *row), np.uint8)], document=document)
    session.outputs = (TensorSpec(name, "uint8", (None, *row), ("N", *("" for _ in row))),)
    picture = np.zeros((1, 4, 4, 3), np.uint8)
    ended = run(session, [front_end.request([picture], [0]) for _ in range(2)]).ended
    assert all(isinstance(record, Failure) and isinstance(record.error, RunFailed) for record, _ in ended)


def test_lone_request_is_answered_as_the_network_answers_whatever_its_rows(front_end: FrontEnd) -> None:
    session = FakeSession(lambda arrays: [np.zeros((0, 4), np.float32)])
    (end,) = run(session, [front_end.request([rows_of(1, 1)], [0])]).ended
    assert front_end.outputs(end)[0].shape == (0, 4)
    assert session.apart


def test_row_count_of_a_network_that_takes_no_batches_is_its_own(front_end: FrontEnd) -> None:
    session = FakeSession(lambda arrays: [arrays[0][:1]], batched=False)
    (end,) = run(session, [front_end.request([rows_of(1, 2)], [0], rows=1)]).ended
    assert (front_end.outputs(end)[0] == rows_of(1, 1)).all()


def test_answers_are_those_of_onnxruntime_alone(
    front_end: FrontEnd, loaded: Callable[[onnx.ModelProto], Session]
) -> None:
    session = loaded(networks.classifier())
    images = [
        np.random.default_rng(number).integers(0, 256, (rows, 8, 8, 1), np.uint8)
        for number, rows in enumerate((1, 4, 2))
    ]
    ran = run(session, [front_end.request([image], [40 * len(image)]) for image in images])
    assert ran.batches[0][0] == 7
    for image, end in zip(images, ran.ended, strict=True):
        (found,) = front_end.outputs(end)
        assert (found == session.run([image])[0]).all()
        assert found.argmax(axis=1).tolist() == (
            (image.reshape(len(image), -1) @ networks.classifier_weights()).argmax(axis=1).tolist()
        )


def test_two_outputs_of_a_segmentation_come_apart(
    front_end: FrontEnd, loaded: Callable[[onnx.ModelProto], Session]
) -> None:
    session = loaded(networks.segmenter())
    images = [np.random.default_rng(number).integers(0, 256, (1, 8, 12, 3), np.uint8) for number in range(3)]
    ran = run(session, [front_end.request([image], [96, 96]) for image in images])
    for image, end in zip(images, ran.ended, strict=True):
        mask, confidence = front_end.outputs(end)
        assert (mask == image.argmax(axis=3)).all()
        assert (confidence == image.max(axis=3)).all()


@pytest.mark.parametrize("values", [[1, -2, 3], [-1, -2], [4]], ids=str)
def test_as_many_values_as_there_are_come_back(
    front_end: FrontEnd, loaded: Callable[[onnx.ModelProto], Session], values: list[float]
) -> None:
    given = np.array(values, np.float32)
    session = loaded(networks.compressor())
    (end,) = run(session, [front_end.request([given], [0], rows=1)]).ended
    (found,) = front_end.outputs(end)
    assert found.tolist() == [value for value in values if value > 0]


def test_batch_is_padded_with_zeros_to_the_size_that_is_faster(front_end: FrontEnd) -> None:
    session = FakeSession(double)
    run(session, [front_end.request([rows_of(9, 4)], [64]) for _ in range(2)])  # leaves its bytes in the memory
    session.padding = {(((4,), "float32"),): {3: 8}}
    requests = [front_end.request([rows_of(number, number)], [16 * number]) for number in (1, 2)]
    ran = run(session, requests)
    assert session.given[-1][0].shape == (8, 4)
    assert not session.given[-1][0][3:].any()
    assert [size for size, _ in ran.batches] == [3]
    for number, end in zip((1, 2), ran.ended, strict=True):
        assert (front_end.outputs(end)[0] == rows_of(number, number) * 2).all()
    run(session, requests[:1])  # of other sizes nothing is said
    assert session.given[-1][0].shape == (1, 4)
    (end,) = run(session, [front_end.request([rows_of(4, 3)], [48])]).ended
    assert session.given[-1][0].shape == (8, 4)
    assert (front_end.outputs(end)[0] == rows_of(4, 3) * 2).all()


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are, outputs go where the network can put them itself."""
    monkeypatch.setattr(runner, "_LARGE", 0)


@pytest.mark.usefixtures("always")
def test_output_of_a_lone_request_is_written_to_its_slot_by_the_network(
    front_end: FrontEnd, segmenter: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 8, 12, 3), np.uint8)
    rooms: list[NDArray[Any]] = []
    real = segmenter.run

    def seen(arrays: Arrays, places: Sequence[NDArray[Any] | None] = ()) -> list[NDArray[Any]]:
        rooms.extend(room for room in places if room is not None)
        return real(arrays, places)

    monkeypatch.setattr(segmenter, "run", seen)
    (end,) = run(segmenter, [front_end.request([image], [96, 96])]).ended
    memory = np.frombuffer(front_end.arena.mapping.bytes_at(0, front_end.arena.nbytes), np.uint8)
    assert [np.shares_memory(room, memory) for room in rooms] == [True, True]
    mask, confidence = front_end.outputs(end)
    assert (mask == image.argmax(axis=3)).all()
    assert (confidence == image.max(axis=3)).all()


@pytest.mark.usefixtures("always")
def test_network_that_does_not_hold_to_its_shapes_is_answered_as_it_answers(
    front_end: FrontEnd, loaded: Callable[[onnx.ModelProto], Session]
) -> None:
    session = loaded(networks.unsaid())
    some = np.array([[1, -1, -1, 2], [3, -4, 5, 6]], np.float32)
    for values, sure in ((abs(some), True), (some, False), (some, False)):
        (end,) = run(session, [front_end.request([values], [32], rows=1)]).ended
        (found,) = front_end.outputs(end)
        assert (found == values[:, values.max(axis=0) > 0]).all()
        assert session.sure is sure


@pytest.mark.usefixtures("always")
def test_failing_network_is_not_taken_for_one_that_does_not_hold_to_its_shapes(
    front_end: FrontEnd, segmenter: Session
) -> None:
    wrong = np.zeros((1, 8, 12, 4), np.uint8)  # a channel too many
    (end,) = run(segmenter, [front_end.request([wrong], [96, 96])]).ended
    assert isinstance(end[0], Failure)
    assert segmenter.sure


@pytest.mark.parametrize("provider", [CPU, CUDA])  # on CUDA, outputs of a batch have memory that is used again, too
@pytest.mark.usefixtures("always")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 3), min_size=1, max_size=4)),
        min_size=1,
        max_size=8,
    )
)
def test_nobody_sees_a_byte_of_another_batch(
    segmenter: Session, provider: str, batches: list[tuple[int, int, list[int]]]
) -> None:
    """Batches of many shapes and sizes one after another in the same memory: each answer is that of a fresh run."""
    segmenter.provider = provider
    segmenter.padding = {(((8, 8, 3), "uint8"),): {2: 5, 3: 4, 4: 6}}
    front_end, random = FrontEnd(), np.random.default_rng(len(batches))
    for height, width, requests in batches:
        images = [random.integers(0, 256, (rows, 4 * height, 4 * width, 3), np.uint8) for rows in requests]
        sizes = [len(image) * 16 * height * width for image in images]
        ran = run(
            segmenter, [front_end.request([image], [size, size]) for image, size in zip(images, sizes, strict=True)]
        )
        for image, end in zip(images, ran.ended, strict=True):
            mask, confidence = front_end.outputs(end)
            assert (mask == image.argmax(axis=3)).all()
            assert (confidence == image.max(axis=3)).all()
    os.close(front_end.arena.descriptor)


def marked(front_end: FrontEnd, request: Request, number: int) -> Request:
    """The request with a mark of its own."""
    block = front_end.arena.allocate(4)
    front_end.arena.mapping.marks[mark_of(block)] = 0
    return msgspec.structs.replace(request, mark=mark_of(block), id=number)


def test_requests_are_marked_while_they_run_and_not_before_or_after(front_end: FrontEnd) -> None:
    during: list[list[int]] = []
    marks = front_end.arena.mapping.marks
    requests = [marked(front_end, front_end.request([rows_of(n, 1)], [16]), n) for n in range(3)]

    def network(arrays: Arrays) -> Arrays:
        during.append([marks[request.mark] for request in requests])
        if len(arrays[0]) > 1:
            raise RuntimeError("each runs alone after this")
        return double(arrays)

    assert all(isinstance(end, Answer) for end, _ in run(FakeSession(network), requests).ended)
    assert during == [[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert [marks[request.mark] for request in requests] == [0, 0, 0]


def test_rows_of_a_suspect_run_one_by_one_each_with_its_number_and_without_those_to_skip(front_end: FrontEnd) -> None:
    during: list[int] = []
    marks = front_end.arena.mapping.marks
    suspect = marked(front_end, front_end.request([rows_of(1, 4)], [64]), 1)
    suspect = msgspec.structs.replace(suspect, apart=True, alone=True, skip=(2,))

    def network(arrays: Arrays) -> Arrays:
        assert len(arrays[0]) == 1
        during.append(marks[suspect.mark])
        return double(arrays)

    (end,) = run(FakeSession(network), [suspect]).ended
    assert during == [1, 2, 4]
    assert marks[suspect.mark] == 0
    assert isinstance(end[0], Answer)
    assert (end[0].failed, end[0].skipped) == ((), (2,))
    assert [type(error) for error in end[0].errors().values()] == [EngineDied]
    (values,) = front_end.outputs(end)
    np.testing.assert_allclose(values[[0, 1, 3]], rows_of(1, 4)[[0, 1, 3]] * 2)


def test_marks_stay_where_the_device_is_lost_in_a_run(front_end: FrontEnd) -> None:
    request = marked(front_end, front_end.request([rows_of(1, 1)], [16]), 1)

    def network(arrays: Arrays) -> Arrays:
        raise DeviceLost("an illegal access")

    with pytest.raises(DeviceLost):
        run(FakeSession(network), [request])
    assert front_end.arena.mapping.marks[request.mark] == 1
