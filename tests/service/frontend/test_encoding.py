"""What is written as bytes is what protobuf would have written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service import metrics
from convoy.service.frontend import encoding
from convoy.service.frontend.encoding import Labels
from convoy.service.frontend.wire import varint
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

FLOATS = st.floats(0, 1, width=32)


@given(
    st.lists(st.text(max_size=40), min_size=1, max_size=300),
    st.lists(st.tuples(st.integers(0, 299), FLOATS), max_size=20),
    st.lists(st.floats(0, 1e6), min_size=9, max_size=9),
    st.integers(1, 100_000),
)
def test_response_reads_as_the_message_that_it_says_it_is(
    names: list[str], chosen: list[tuple[int, float]], seconds: list[float], batch_size: int
) -> None:
    picked = [(index % len(names), probability) for index, probability in chosen]
    timings = encoding.timings(seconds, batch_size)
    result = Labels(names).result([index for index, _ in picked], [value for _, value in picked], timings)
    failed = pb.ClassifyResult(error=pb.ImageError(code=3, reason="BAD_IMAGE", message="no"))
    response = pb.ClassifyResponse.FromString(
        encoding.response("letters", 7, [result, failed.SerializeToString(), result])
    )
    wanted = pb.ClassifyResult(
        classification=pb.Classification(
            labels=[pb.Label(index=index, name=names[index], probability=value) for index, value in picked]
        ),
        timings=pb.Timings(
            total_seconds=seconds[8],
            batch_size=batch_size,
            **{f"{stage}_seconds": value for stage, value in zip(metrics.STAGES, seconds, strict=False)},
        ),
    )
    assert response == pb.ClassifyResponse(model="letters", version=7, results=[wanted, failed, wanted])


def test_a_probability_keeps_every_bit() -> None:
    value = math.pi / 4
    single = pb.Label(probability=value).probability
    result = pb.ClassifyResult.FromString(Labels(["a"]).result([0], [single], b""))
    assert result.classification.labels[0].probability == single != value


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63 - 1])
def test_numbers_are_written_as_protobuf_writes_them(value: int) -> None:
    written = pb.ClassifyRequest(version=value).SerializeToString()
    assert written == (b"\x10" + varint(value) if value else b"")
