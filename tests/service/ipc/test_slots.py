"""Blocks of shared memory never overlap, all come back, and nobody reaches beyond them."""

import mmap
import os
import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.dtypes import DTYPES
from convoy.service.errors import BadTensor, QueueFull
from convoy.service.ipc.slots import ALIGNMENT, SPILLED, Arena, SharedMemory, Span, mark_of, memory_file
from tests.service.descriptors import open_descriptors

NBYTES = 64 * ALIGNMENT

# What a caller does: allocate so many bytes, or free the so many-th of the blocks that it holds.
ACTIONS = st.lists(
    st.one_of(st.tuples(st.just("allocate"), st.integers(0, NBYTES)), st.tuples(st.just("free"), st.integers(0, 1000))),
    max_size=60,
)


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(NBYTES)
    yield made
    os.close(made.descriptor)


@pytest.fixture
def mapping() -> Iterator[SharedMemory]:
    descriptor = memory_file(NBYTES)
    yield SharedMemory(descriptor, NBYTES)
    os.close(descriptor)


def overlapping(blocks: list[tuple[int, int]]) -> bool:
    ordered = sorted(blocks)
    return any(here[0] + here[1] > there[0] for here, there in pairwise(ordered))


@given(ACTIONS)
def test_blocks_never_overlap_whatever_is_allocated_and_freed(actions: list[tuple[str, int]]) -> None:
    arena = Arena(NBYTES)
    held: list[tuple[int, int]] = []
    for action, number in actions:
        if action == "allocate":
            try:
                block = arena.allocate(number)
            except QueueFull:
                continue
            assert block[1] >= number
            assert block[0] % ALIGNMENT == 0
            assert 0 <= block[0] <= NBYTES - block[1]
            held.append(block)
        elif held:
            arena.free(held.pop(number % len(held)))
        assert not overlapping(held)
        assert arena.used_bytes == sum(nbytes for _, nbytes in held)
    for block in held:
        arena.free(block)
    assert arena.used_bytes == 0
    assert arena.allocate(NBYTES) == (0, NBYTES)  # it has all grown together again
    os.close(arena.descriptor)


def test_overlap_is_seen() -> None:
    assert overlapping([(128, 64), (0, 129)])
    assert not overlapping([(128, 64), (0, 128)])


@given(st.permutations(range(8)))
def test_freed_neighbours_become_one_block_in_whatever_order(order: list[int]) -> None:
    arena = Arena(8 * ALIGNMENT)
    blocks = [arena.allocate(ALIGNMENT) for _ in range(8)]
    for place in order[:-1]:
        arena.free(blocks[place])
    with pytest.raises(QueueFull):
        arena.allocate(8 * ALIGNMENT)
    arena.free(blocks[order[-1]])
    assert arena.allocate(8 * ALIGNMENT) == (0, 8 * ALIGNMENT)
    os.close(arena.descriptor)


def test_block_given_back_is_the_next_of_its_size(arena: Arena) -> None:
    blocks = [arena.allocate(nbytes * ALIGNMENT) for nbytes in (1, 2, 1, 2)]
    arena.free(blocks[0])
    arena.free(blocks[3])
    assert arena.allocate(2 * ALIGNMENT) == blocks[3]
    assert arena.allocate(1) == blocks[0]
    assert arena.allocate(1)[0] > blocks[3][0]  # nothing of its size is there any more


def test_no_more_is_kept_for_its_size_than_a_share_and_then_the_lowest_room_is_taken(arena: Arena) -> None:
    most = NBYTES // 8 // ALIGNMENT
    blocks = [arena.allocate(ALIGNMENT) for _ in range(most + 1)]
    for block in blocks:
        arena.free(block)
    # The last one was kept, those before it have grown together.
    assert arena.allocate(most * ALIGNMENT)[0] == blocks[0][0]
    assert arena.allocate(ALIGNMENT) == blocks[-1]


def test_whole_share_is_kept_again_after_a_release(arena: Arena) -> None:
    most = NBYTES // 8 // ALIGNMENT
    for block in [arena.allocate(ALIGNMENT) for _ in range(most + 1)]:
        arena.free(block)
    blocks = [arena.allocate(ALIGNMENT) for _ in range(most)]
    for block in blocks:
        arena.free(block)
    assert [arena.allocate(ALIGNMENT) for _ in blocks] == blocks[::-1]


def test_blocks_in_turn_are_kept_for_ever(arena: Arena) -> None:
    most = NBYTES // 8 // ALIGNMENT
    blocks = [arena.allocate(ALIGNMENT) for _ in range(most + 2)]
    for block in blocks[:-1]:
        arena.free(block)
    first, second = arena.allocate(ALIGNMENT), blocks[-1]  # there is room before both
    for turn in range(4 * most):
        arena.free(second)
        for _ in range(turn % 3):
            arena.free(first)
            assert arena.allocate(ALIGNMENT) == first
        arena.free(first)
        assert arena.allocate(ALIGNMENT) == first
        assert arena.allocate(ALIGNMENT) == second


@pytest.mark.parametrize("neighbours_first", [True, False])
def test_block_freed_twice_is_caught(arena: Arena, neighbours_first: bool) -> None:
    blocks = [arena.allocate(ALIGNMENT) for _ in range(5)]
    if neighbours_first:
        arena.free(blocks[1])
        arena.free(blocks[3])
    arena.free(blocks[2])
    used = arena.used_bytes
    with pytest.raises(AssertionError, match="twice"):
        arena.free(blocks[2])
    assert arena.used_bytes == used
    arena.free(blocks[0])  # the others are as they were
    arena.free(blocks[4])


def test_block_that_reaches_into_free_memory_is_caught(arena: Arena) -> None:
    first, second, _ = (arena.allocate(ALIGNMENT) for _ in range(3))
    arena.free(second)
    with pytest.raises(AssertionError):
        arena.free((first[0], 2 * ALIGNMENT))


def test_full_memory_is_queue_full_with_a_hint(arena: Arena) -> None:
    block = arena.allocate(NBYTES)
    with pytest.raises(QueueFull) as full:
        arena.allocate(1)
    assert full.value.retry_after is not None
    assert full.value.retry_after > 0
    arena.free(block)
    arena.allocate(1)


def test_room_in_pieces_is_queue_full_not_a_bad_request(arena: Arena) -> None:
    blocks = [arena.allocate(NBYTES // 4) for _ in range(4)]
    arena.free(blocks[0])
    arena.free(blocks[2])
    with pytest.raises(QueueFull):
        arena.allocate(NBYTES // 2)


def test_request_above_the_whole_memory_is_refused_for_good(arena: Arena) -> None:
    with pytest.raises(BadTensor, match=f"{NBYTES + 1} bytes.*at most {NBYTES}"):
        arena.allocate(NBYTES + 1)
    arena.allocate(NBYTES)
    with pytest.raises(BadTensor):  # also while it is full: waiting would not help
        arena.allocate(NBYTES + 1)


def test_nothing_has_a_place_of_its_own(arena: Arena) -> None:
    assert arena.allocate(0)[0] != arena.allocate(0)[0]


def test_threads_are_never_given_the_same_block() -> None:
    arena = Arena(1 << 20)
    held: list[list[tuple[int, int]]] = [[] for _ in range(4)]

    def claim(own: list[tuple[int, int]]) -> None:
        for turn in range(2000):
            own.append(arena.allocate(100))
            if turn % 2:
                arena.free(own.pop(0))

    threads = [threading.Thread(target=claim, args=(own,)) for own in held]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    blocks = [block for own in held for block in own]
    assert len(blocks) == 4 * 1000
    assert not overlapping(blocks)
    assert arena.used_bytes == sum(nbytes for _, nbytes in blocks)
    os.close(arena.descriptor)


def test_memory_file_has_no_name_and_is_not_inherited() -> None:
    descriptor = memory_file(4096)
    assert not os.get_inheritable(descriptor)
    assert os.fstat(descriptor).st_nlink == 0
    assert os.fstat(descriptor).st_size == 4096
    os.close(descriptor)


def test_two_mappings_of_one_memory_see_each_others_bytes(arena: Arena) -> None:
    other = SharedMemory(arena.descriptor, arena.nbytes)
    span = Span(0, 2 * ALIGNMENT, 24, "float32", (2, 3))
    arena.mapping.array(span)[...] = np.arange(6).reshape(2, 3)
    assert other.array(span).tolist() == [[0, 1, 2], [3, 4, 5]]
    other.bytes_at(2 * ALIGNMENT, 4)[:] = 0xFF
    assert np.isnan(arena.mapping.array(span)[0, 0])
    assert not np.isnan(arena.mapping.array(span)[0, 1])


def test_memory_files_are_strangers() -> None:
    descriptors = [memory_file(mmap.PAGESIZE) for _ in range(2)]
    mine, other = (SharedMemory(descriptor, mmap.PAGESIZE) for descriptor in descriptors)
    mine.bytes_at(0, mmap.PAGESIZE)[:] = 7
    assert not other.bytes_at(0, mmap.PAGESIZE).any()
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensor_of_every_dtype_is_kept(mapping: SharedMemory, dtype: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    span = Span(0, ALIGNMENT, values.nbytes, dtype, values.shape)
    mapping.array(span)[...] = values
    assert mapping.array(span).dtype == dtype
    assert (mapping.array(span) == values).all()
    assert mapping.bytes_at(ALIGNMENT, values.nbytes).tobytes() == values.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (NBYTES,), (1,) * 8, (0,), (5, 0)])
def test_span_within_the_memory_is_given(mapping: SharedMemory, shape: tuple[int, ...]) -> None:
    assert mapping.array(Span(0, 0, 0, "uint8", shape)).shape == shape


@pytest.mark.parametrize(
    ("offset", "shape"),
    [
        (NBYTES, (1,)),
        (1, (NBYTES,)),
        (NBYTES - 3, (2, 2)),
        (0, (NBYTES + 1,)),
        (0, (1 << 62, 1 << 62)),
        (0, (1 << 32, 1 << 32)),  # 2**64: nothing, where a product wraps
        (SPILLED, (1,)),
        ((1 << 64) - ALIGNMENT, (ALIGNMENT,)),
        ((1 << 63) - 1, (1,)),  # its end is beyond what numpy counts to
        (-1, (4,)),
        (0, (-1,)),
        (0, (-1, -4)),  # four bytes, where only the product is looked at
    ],
)
def test_span_beyond_the_memory_is_refused(mapping: SharedMemory, offset: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadTensor, match="do not fit"):
        mapping.array(Span(0, offset, 0, "uint8", shape))


def test_wide_dtype_counts_in_bytes(mapping: SharedMemory) -> None:
    doubles = "float64"
    mapping.array(Span(0, 0, NBYTES, doubles, (NBYTES // 8,)))
    with pytest.raises(BadTensor):
        mapping.array(Span(0, 8, NBYTES, doubles, (NBYTES // 8,)))


@pytest.mark.parametrize(("offset", "nbytes"), [(1, NBYTES), (NBYTES, 1), (0, -1), (-1, 1), (SPILLED, 1), (1 << 63, 1)])
def test_bytes_beyond_the_memory_are_refused(mapping: SharedMemory, offset: int, nbytes: int) -> None:
    assert len(mapping.bytes_at(0, NBYTES)) == NBYTES
    with pytest.raises(BadTensor, match="do not fit"):
        mapping.bytes_at(offset, nbytes)


def test_contents_in_the_memory_are_found_where_they_lie_side_by_side(arena: Arena) -> None:
    whole = arena.mapping.bytes_at(0, NBYTES)
    first, second, third = (memoryview(whole[begin : begin + 10].data) for begin in (64, 74, 85))
    assert arena.mapping.offset_of([first]) == 64
    assert arena.mapping.offset_of([second]) == 74
    assert arena.mapping.offset_of([first, second]) == 64
    assert arena.mapping.offset_of([second, third]) is None
    assert arena.mapping.offset_of([second, first]) is None
    assert arena.mapping.offset_of([bytes(10)]) is None
    assert arena.mapping.offset_of([whole[128:256].view(np.float32).reshape(4, 8)]) == 128


def test_inputs_that_are_in_the_memory_take_no_space_in_the_slot(arena: Arena) -> None:
    inputs = (("uint8", (3,)), ("float32", (4, 8)), ("uint8", (5,)))
    block, spans, outputs = arena.claim(inputs, ((0, 7),), {1: 640})
    assert block == (0, 4 * ALIGNMENT)  # the first for the mark
    assert [(span.number, span.offset, span.nbytes) for span in spans] == [(0, 64, 3), (1, 640, 128), (2, 128, 5)]
    assert outputs[0].offset == 192


def test_marks_and_tensors_of_slots_never_overlap(arena: Arena) -> None:
    slots = [arena.claim((("float32", (2, 3)), ("uint8", (5,))), ((0, 100), (2, 1))) for _ in range(3)]
    taken: list[tuple[int, int]] = []
    for block, inputs, outputs in slots:
        mark = mark_of(block) * 4
        spans = [(mark, 4), *((span.offset, span.nbytes) for span in (*inputs, *outputs))]
        assert all(block[0] <= begin and begin + nbytes <= block[0] + block[1] for begin, nbytes in spans)
        assert all(span.offset % ALIGNMENT == 0 for span in (*inputs, *outputs))
        assert [(span.number, span.nbytes) for span in inputs] == [(0, 24), (1, 5)]
        assert [(span.number, span.nbytes, span.shape) for span in outputs] == [(0, 100, (100,)), (2, 1, (1,))]
        arena.mapping.marks[mark_of(block)] = 7
        assert arena.mapping.bytes_at(mark, 4).view(np.uint32)[0] == 7
        taken += spans
    assert not overlapping(taken)


def test_input_that_lies_elsewhere_takes_no_space_in_its_slot(arena: Arena) -> None:
    elsewhere, _ = arena.allocate(128)
    block, inputs, outputs = arena.claim((("uint8", (128,)), ("uint8", (64,))), ((0, 64),), {0: elsewhere})
    assert block[1] == 3 * ALIGNMENT  # the mark, the other input, the output
    assert (inputs[0].offset, inputs[1].offset) == (elsewhere, block[0] + ALIGNMENT)
    assert outputs[0].offset == block[0] + 2 * ALIGNMENT


def test_contents_are_found_in_the_memory_only_where_they_lie_there_side_by_side(arena: Arena) -> None:
    whole = arena.mapping.bytes_at(0, NBYTES)
    assert arena.mapping.offset_of([whole[64:80]]) == 64
    assert arena.mapping.offset_of([whole[64:80], whole[80:96]]) == 64
    assert arena.mapping.offset_of([whole[64:80], whole[81:96]]) is None
    assert arena.mapping.offset_of([whole]) == 0
    assert arena.mapping.offset_of([bytes(16)]) is None


def test_output_is_read_from_its_slot_or_from_the_file_that_came_with_it(mapping: SharedMemory) -> None:
    mapping.bytes_at(64, 4)[...] = [1, 2, 3, 4]
    assert mapping.output(Span(0, 64, 4, "uint8", (4,)), []).tolist() == [1, 2, 3, 4]
    before = open_descriptors()
    spilled, other = memory_file(8), memory_file(8)
    os.pwrite(spilled, np.array([5, 6], np.float32).tobytes(), 0)
    descriptors = [spilled, other]
    assert mapping.output(Span(1, SPILLED, 8, "float32", (2,)), descriptors).tolist() == [5, 6]
    assert descriptors == [other]
    os.close(other)
    assert open_descriptors() <= before


def test_spilled_output_without_elements_is_empty(mapping: SharedMemory) -> None:
    empty = memory_file(1)  # a file without a byte cannot be mapped
    assert mapping.output(Span(0, SPILLED, 0, "uint8", (0, 4)), [empty]).shape == (0, 4)


def test_view_of_a_tensor_is_its_bytes(mapping: SharedMemory) -> None:
    mapping.bytes_at(64, 4)[...] = [1, 2, 3, 4]
    view = mapping.view(Span(0, 64, 3, "uint8", (3,)))
    assert view.tolist() == [1, 2, 3]
    view[0] = 9
    assert mapping.bytes_at(64, 1).tolist() == [9]
    assert len(mapping.view(Span(0, NBYTES - 3, 3, "uint8", (3,)))) == 3
    with pytest.raises(BadTensor):
        mapping.view(Span(0, NBYTES - 2, 3, "uint8", (3,)))


@pytest.mark.parametrize("shape", [(-1,), (-1, 5), (5, -1), (-2, -2)])
def test_tensor_with_a_negative_side_is_refused(mapping: SharedMemory, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadTensor):
        mapping.array(Span(0, 0, 4, "uint8", shape))


def test_scalar_has_one_element(mapping: SharedMemory) -> None:
    mapping.bytes_at(64, 4)[...] = 0
    assert mapping.array(Span(0, 64, 4, "float32", ())).shape == ()


@pytest.mark.parametrize("nbytes", [8, 9, 64])
def test_output_is_poisoned_until_it_is_written_to_its_end(mapping: SharedMemory, nbytes: int) -> None:
    span = Span(0, ALIGNMENT, nbytes, "uint8", (nbytes,))
    around = mapping.bytes_at(0, 3 * ALIGNMENT)
    assert not mapping.is_poisoned(span)
    mapping.poison(span)
    assert mapping.is_poisoned(span)
    assert set(np.flatnonzero(around)) <= set(range(ALIGNMENT + nbytes - 8, ALIGNMENT + nbytes))  # nothing else changed
    mapping.array(span)[: nbytes - 8] = 7
    assert mapping.is_poisoned(span)
    mapping.array(span)[-1] ^= 1
    assert not mapping.is_poisoned(span)


def test_output_too_small_for_the_secret_is_never_poisoned(mapping: SharedMemory) -> None:
    tiny = Span(0, 64, 7, "uint8", (7,))
    mapping.poison(tiny)
    assert not mapping.bytes_at(0, NBYTES).any()
    mapping.poison(Span(0, 63, 8, "uint8", (8,)))  # the secret of an earlier output, which ends where this one does
    assert not mapping.is_poisoned(tiny)


def test_memory_that_is_no_whole_number_of_marks_has_those_that_fit() -> None:
    descriptor = memory_file(10)
    assert len(SharedMemory(descriptor, 10).marks) == 2
    os.close(descriptor)
