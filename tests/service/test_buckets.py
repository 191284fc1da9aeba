"""Shape buckets: which one an image goes to, and which ones a network does not take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.buckets import NONE, Buckets, Size, accepts_buckets, configured, ordered
from convoy.service.errors import BadConfig
from convoy.service.metadata import Document, InputSpec, TensorInput
from tests.service.networks import WAVES

ANY_SIZE = InputSpec(colour="RGB", fit="pad", multiple=16, min_height=32, min_width=48)
FIXED = InputSpec(colour="RGB", height=64, width=64)
MANY = 1 << 20  # pixels

SIDE = st.integers(1, 64)
SIZES = st.tuples(SIDE, SIDE)


def document(
    task: str = "segmentation", spec: InputSpec | None = ANY_SIZE, tensor: TensorInput | None = None
) -> Document:
    return Document(task=task, labels=["a"], input=spec, tensor=tensor)  # type: ignore[arg-type]


@given(SIZES, st.lists(SIZES, max_size=6))
def test_image_goes_to_the_bucket_with_the_fewest_pixels_that_holds_it(size: Size, buckets: list[Size]) -> None:
    found = Buckets(ordered(buckets)).fitting(size)
    holding = [bucket for bucket in buckets if bucket[0] >= size[0] and bucket[1] >= size[1]]
    if holding:
        assert found in holding
        assert found[0] * found[1] == min(height * width for height, width in holding)
    else:
        assert found == size


def test_image_that_is_larger_than_every_bucket_in_one_side_keeps_its_size() -> None:
    assert Buckets(ordered([(64, 128), (128, 128)])).fitting((48, 256)) == (48, 256)


@given(SIZES, st.lists(SIZES, max_size=6), st.floats(1, 4))
def test_image_is_padded_by_no_more_than_it_may_be(size: Size, buckets: list[Size], most: float) -> None:
    found, wanted = (Buckets(ordered(buckets), limit).fitting(size) for limit in (most, None))
    within = wanted[0] * wanted[1] <= most * size[0] * size[1]
    assert found == (wanted if within else size)


def test_buckets_of_equally_many_pixels_have_one_order() -> None:
    assert ordered([(64, 32), (32, 64), (64, 32)]) == ordered([(32, 64), (64, 32)]) == ((32, 64), (64, 32))


def test_own_buckets_count_before_the_servers() -> None:
    own = ((64, 64), (32, 48))
    assert configured(((96, 96),), own, document(), MANY).sizes == ((32, 48), (64, 64))
    assert configured(((96, 96),), None, document(), MANY).sizes == ((96, 96),)
    assert configured(((96, 96),), "none", document(), MANY) == NONE
    assert configured("auto", None, document(), MANY) == NONE  # as long as nothing has been learned


@pytest.mark.parametrize(
    "other",
    [None, document("classification"), document(spec=FIXED), document("classification", spec=None, tensor=WAVES)],
    ids=["no document", "classification", "one size", "tensor"],
)
def test_only_segmentation_of_any_size_has_buckets(other: Document | None) -> None:
    assert not accepts_buckets(other)
    assert configured(((64, 64),), None, other, MANY) == NONE  # the server's are for those that take them
    assert configured("none", "auto", other, MANY) == NONE
    with pytest.raises(BadConfig, match=r"buckets are \[\[64, 64\]\], want none: only segmentation"):
        configured("none", ((64, 64),), other, MANY)
    assert accepts_buckets(document())


@pytest.mark.parametrize(
    ("bucket", "words"),
    [
        ((64, 72), r"\[64, 72\] has sides that the network does not accept, want multiples of 16"),
        ((32, 32), r"\[32, 32\] is smaller than the network accepts, want at least \[32, 48\]"),
        ((1024, 1040), r"\[1024, 1040\] has 1064960 pixels, want at most limits.max_input_pixels, 1048576"),
    ],
)
def test_bucket_that_does_not_hold_is_named_with_what_was_wanted(bucket: Size, words: str) -> None:
    for default, own in (("none", ((64, 64), bucket)), (((64, 64), bucket), None)):
        with pytest.raises(BadConfig, match=words):
            configured(default, own, document(), MANY)  # type: ignore[arg-type]
