"""Learning shape buckets: what is held, by how much it is padded, and when other buckets take over."""

import random
import time
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.service.buckets import Buckets, Size, ordered
from convoy.service.engine import learned_buckets as learning
from convoy.service.engine.learned_buckets import MOST_PADDING, Sizes, choose, pays

MANY = 1 << 22
SIDE = st.integers(1, 40).map(lambda steps: 8 * steps)
IMAGES = st.dictionaries(st.tuples(SIDE, SIDE), st.floats(1, 1000), max_size=20)
LIKE = {(480, 640): 50.0, (472, 640): 50.0, (480, 632): 50.0}
OTHER = {(240, 320): 200.0, (240, 312): 200.0}


def held(images: dict[Size, float], buckets: tuple[Size, ...]) -> float:
    """The pixels of images that go to a bucket."""
    table = Buckets(buckets, MOST_PADDING)
    return sum(count * size[0] * size[1] for size, count in images.items() if table.fitting(size) in buckets)


def test_sizes_that_are_alike_share_a_bucket_that_holds_them_tightly() -> None:
    assert choose(LIKE, (), MANY) == ((480, 640),)
    assert choose(LIKE | OTHER, (), MANY) == ((240, 320), (480, 640))


def test_sizes_that_are_not_alike_keep_their_own() -> None:
    assert choose({(480, 640): 100.0, (640, 480): 100.0, (240, 320): 100.0}, (), MANY) == ()
    assert choose({(480, 640): 100.0}, (), MANY) == ()
    assert choose({}, (), MANY) == ()


@settings(deadline=None)
@given(IMAGES)
def test_no_image_is_padded_by_more_than_it_may_be(images: dict[Size, float]) -> None:
    table = Buckets(choose(images, (), MANY), MOST_PADDING)
    for height, width in images:
        padded = table.fitting((height, width))
        assert padded[0] >= height
        assert padded[1] >= width
        assert padded[0] * padded[1] <= MOST_PADDING * height * width


@settings(deadline=None)
@given(st.dictionaries(st.tuples(SIDE, SIDE), st.floats(1, 1000), max_size=40))
def test_choice_is_the_same_whatever_the_order(images: dict[Size, float]) -> None:
    shuffled = list(images.items())
    random.Random(0).shuffle(shuffled)
    assert choose(dict(shuffled), (), MANY) == choose(images, (), MANY)


def test_greedy_choice_is_near_the_best_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every choice of two buckets."""
    monkeypatch.setattr(learning, "_MOST_BUCKETS", 2)
    generator = random.Random(1)
    for _ in range(20):
        images: dict[Size, float] = {
            (8 * generator.randint(10, 20), 8 * generator.randint(10, 20)): generator.randint(1, 9) for _ in range(12)
        }
        boxes = [(h, w) for h in {s[0] for s in images} for w in {s[1] for s in images}]
        best = max(held(images, ordered(pair)) for pair in combinations(boxes, 2))
        assert 0.63 * best <= held(images, choose(images, (), MANY)) <= best


def test_buckets_stay_until_others_hold_clearly_more() -> None:
    present = choose(LIKE, (), MANY)
    few = {size: 0.01 * count for size, count in OTHER.items()}
    assert choose(LIKE | few, present, MANY) == present
    assert choose(LIKE | OTHER, present, MANY) == ((240, 320), (480, 640))
    assert choose(OTHER, present, MANY) == ((240, 320),)


def test_bucket_is_no_larger_than_an_input_may_be() -> None:
    assert choose(LIKE, (), 480 * 640 - 1) == ()
    assert choose({(472, 640): 1.0, (480, 632): 1.0}, (), 480 * 640 - 1) == ()


def test_old_sizes_fade_and_new_ones_take_over() -> None:
    sizes = Sizes()
    looks: list[tuple[Size, ...]] = [()]
    for number in range(20_000):
        kind = list(LIKE) if number < 10_000 else list(OTHER)
        if sizes.add(kind[number % len(kind)], 1):
            looks.append(choose(sizes.recent(), looks[-1], MANY))
    changes = [after for before, after in pairwise(looks) if before != after]
    assert changes[0] == ((480, 640),)
    assert set(looks[-1]) >= {(240, 320)}
    assert len(changes) <= 3


@pytest.mark.parametrize(
    ("seconds", "worth"),
    [({1: 0.010, 2: 0.020, 4: 0.039}, False), ({1: 0.010, 2: 0.012, 4: 0.020}, True), ({1: 0.010}, False)],
)
def test_padding_is_worth_it_where_batches_pay_for_it(seconds: dict[int, float], worth: bool) -> None:
    assert pays(seconds) is worth


def test_nothing_is_looked_at_before_much_has_come() -> None:
    sizes = Sizes()
    due = [sizes.add((8, 8 * number), 1) for number in range(1, 513)]
    assert due == [False] * 511 + [True]
    assert sum(sizes.recent().values()) == 512
    assert not sizes.add((8, 8), 1)


def test_any_number_of_sizes_takes_bounded_memory_and_time() -> None:
    sizes = Sizes()
    for number in range(5000):
        if sizes.add((number, number), 1):
            assert len(sizes.recent()) <= 1024
    generator = random.Random(2)
    images = {(8 * generator.randint(20, 80), 8 * generator.randint(20, 80)): 1.0 for _ in range(1000)}
    start = time.process_time()
    assert len(choose(images, (), MANY)) <= 8
    assert time.process_time() - start < 3.0
