"""One session with all threads, or several with one each: what there is to choose from, and what is chosen."""

import msgspec
import pytest

from convoy.service.engine.layouts import Layout, choose, known, layouts, rate
from convoy.service.engine.profiles import BatchTime, Machine, Profile

MACHINE = Machine(device="a machine", provider="CPUExecutionProvider", threads=4, onnxruntime="1", model_sha256="0")


def profile(seconds: dict[int, float], instances: int = 1, shape: tuple[int, ...] = (8, 8, 1)) -> Profile:
    machine = msgspec.structs.replace(MACHINE, instances=instances, threads=4 // instances)
    batches = {size: BatchTime(time, time) for size, time in seconds.items()}
    return Profile(machine=machine, shape=shape, dtype="uint8", most=32, batches=batches)


ONE = profile({1: 0.010, 2: 0.020})  # 100 images a second


@pytest.mark.parametrize(
    ("wanted", "threads", "gpu", "found"),
    [
        (1, 4, False, [Layout(1, 4)]),
        (3, 8, False, [Layout(3, 2)]),
        (4, 2, False, [Layout(4, 1)]),
        (2, 4, True, [Layout(2, 2)]),
        ("auto", 1, False, [Layout(1, 1)]),
        ("auto", 4, True, [Layout(1, 4)]),
        ("auto", 4, False, [Layout(1, 4), Layout(4, 1)]),
        ("auto", 64, False, [Layout(1, 64), Layout(16, 4)]),
    ],
)
def test_threads_are_shared_out(wanted, threads, gpu, found) -> None:
    assert layouts(wanted, threads, gpu) == found


@pytest.mark.parametrize(("seconds", "taken"), [(0.030, True), (0.0379, True), (0.0385, False), (0.040, False)])
def test_several_are_taken_where_they_bring_clearly_more(seconds: float, taken: bool) -> None:
    assert choose([ONE], [profile({1: seconds, 2: 2 * seconds}, instances=4)], 1.0) is taken


def test_lone_image_has_to_be_in_time_with_one_core() -> None:
    several = profile({1: 0.030, 2: 0.060}, instances=4)  # a third more images a second
    assert choose([ONE], [several], 0.07)
    assert not choose([ONE], [several], 0.05)  # two in a row would take 60 ms


def test_layouts_are_compared_by_the_batches_that_fit_into_the_objective() -> None:
    one, several = profile({1: 0.010, 32: 0.100}), profile({1: 0.020, 32: 0.320}, instances=4)
    assert rate(one, 1.0) == pytest.approx(320, rel=0.01)
    assert rate(several, 1.0) == pytest.approx(400, rel=0.01)
    assert choose([one], [several], 1.0)
    assert rate(several, 0.01) == 0


def test_every_shape_has_to_gain() -> None:
    small, wide = profile({1: 0.010}), profile({1: 0.010}, shape=(16, 8, 1))
    faster, slower = profile({1: 0.030}, 4), profile({1: 0.045}, 4, (16, 8, 1))
    assert choose([small], [faster], 1.0)
    assert not choose([small, wide], [faster, slower], 1.0)
    assert not choose([], [], 1.0)


def test_choice_is_remembered_by_the_profiles_of_both() -> None:
    candidates = [Layout(1, 4), Layout(4, 1)]
    better = profile({1: 0.030}, instances=4)
    assert known([ONE, better], candidates, 1.0) == Layout(4, 1)
    assert known([ONE, better], candidates, 0.05) == Layout(1, 4)
    assert known([ONE], candidates, 1.0) is None
    assert known([better], candidates, 1.0) is None
    assert known([ONE, profile({1: 0.030}, 4, (16, 8, 1))], candidates, 1.0) is None  # not of the same shape
