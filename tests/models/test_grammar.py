"""A pattern is read as its grammar says; what does not hold is refused with its column."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.models.errors import BadTraining
from convoy.models.grammar import MAX_LAYERS, parse

CLASSIC = "INPUT -> [[CONV -> RELU]*{n} -> {pool}]*{m} -> [FC -> RELU]*{k} -> FC"


def kinds(pattern: str) -> str:
    return " ".join(layer.kind for layer in parse(pattern))


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("INPUT -> FC", "FC"),
        ("INPUT -> [[CONV -> RELU]*0 -> POOL]*0 -> [FC -> RELU]*0 -> FC", "FC"),
        ("INPUT->FC->RELU->FC", "FC RELU FC"),
        ("INPUT -> CONV -> RELU -> FC", "CONV RELU FC"),
        ("INPUT -> [CONV -> RELU -> POOL]*2 -> FC -> RELU -> FC", "CONV RELU POOL CONV RELU POOL FC RELU FC"),
        ("INPUT -> [[CONV -> RELU]*2 -> POOL]*2 -> FC", "CONV RELU CONV RELU POOL CONV RELU CONV RELU POOL FC"),
        ("INPUT -> [[CONV -> RELU]*0 -> POOL]*2 -> FC", "POOL POOL FC"),
        ("  INPUT ->\n\t[ CONV->RELU ] * 2 -> [FC] ", "CONV RELU CONV RELU FC"),
        ("[INPUT -> FC]", "FC"),
    ],
)
def test_repetitions_are_written_out(pattern: str, layers: str) -> None:
    assert kinds(pattern) == layers


@given(n=st.integers(0, 4), m=st.integers(0, 4), k=st.integers(0, 4), pool=st.sampled_from(["POOL", "POOL?"]))
def test_every_instance_of_the_classic_pattern_is_read(n: int, m: int, k: int, pool: str) -> None:
    layers = parse(CLASSIC.format(n=n, m=m, k=k, pool=pool))
    expected = ((["CONV", "RELU"] * n) + ["POOL"]) * m + ["FC", "RELU"] * k + ["FC"]
    assert [layer.kind for layer in layers] == expected
    assert {layer.optional for layer in layers if layer.kind == "POOL"} == ({pool == "POOL?"} if m else set())
    assert not any(layer.optional for layer in layers if layer.kind != "POOL")


def test_pool_may_be_missing_from_a_block() -> None:
    assert kinds("INPUT -> [[CONV -> RELU]*2]*2 -> FC") == "CONV RELU " * 4 + "FC"


def test_layers_carry_the_column_that_names_them() -> None:
    pattern = "INPUT -> [CONV -> RELU]*2 -> FC"
    assert [layer.column for layer in parse(pattern)] == [11, 19, 11, 19, 30]
    assert pattern[29:] == "FC"


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("", "column 1: the end, want [, INPUT, CONV"),
        ("   ", "column 1: the end, want"),
        ("INPUT", "column 6: ends with INPUT, want FC"),
        ("FC", "column 1: FC at the beginning, want INPUT"),
        ("INPUT -> INPUT -> FC", "column 10: INPUT after INPUT, want CONV or POOL or FC"),
        ("INPUT -> CNOV -> RELU -> FC", "column 10: 'CNOV', want [, INPUT, CONV, RELU, POOL, FC"),
        ("INPUT -> conv -> FC", "column 10: 'conv', want"),
        ("INPUT -> CONV -> FC", "column 18: FC after CONV, want RELU"),
        ("INPUT -> [CONV]*2 -> FC", "column 11: CONV after CONV, want RELU"),
        ("INPUT -> RELU -> FC", "column 10: RELU after INPUT, want CONV or POOL or FC"),
        ("INPUT -> POOL -> RELU -> FC", "column 18: RELU after POOL, want"),
        ("INPUT -> FC -> POOL -> FC", "column 16: POOL after FC, want RELU"),
        ("INPUT -> FC -> RELU -> CONV", "column 24: CONV after RELU, want FC"),
        ("INPUT -> FC -> FC", "column 16: FC after FC, want RELU"),
        ("INPUT -> FC -> RELU", "column 20: ends with RELU, want FC"),
        ("INPUT -> [CONV -> RELU -> POOL]*2  ", "column 34: ends with POOL, want FC"),
        ("INPUT FC", "column 7: 'FC', want -> or the end"),
        ("INPUT -> FC]", "column 12: ']', want -> or the end"),
        ("INPUT -> -> FC", "column 10: '->', want"),
        ("INPUT -> FC ->", "column 15: the end, want"),
        ("INPUT -> [] -> FC", "column 11: ']', want"),
        ("INPUT -> [CONV -> RELU -> FC", "column 29: the end, want -> or the ] of the [ in column 10"),
        ("INPUT -> [CONV -> RELU]*N -> FC", "column 25: 'N', want how often to repeat"),
        ("INPUT -> [CONV -> RELU]* -> FC", "column 26: '->', want how often to repeat"),
        ("INPUT -> [CONV -> RELU]*-1 -> FC", "column 25: '-', want a layer, ->"),
        ("INPUT -> [CONV -> RELU]*2.5 -> FC", "column 26: '.', want a layer"),
        ("INPUT -> CONV*2 -> FC", "column 14: '*', want -> or the end"),
        ("INPUT -> CONV? -> FC", "column 14: ? after CONV, only POOL can be optional"),
        ("INPUT -> [CONV -> RELU]*129 -> FC", "column 25: 2 layers 129 times, want at most 256 layers"),
        ("INPUT -> [[CONV -> RELU]*100]*9999 -> FC", "column 31: 200 layers 9999 times, want at most 256"),
        ("INPUT -> [CONV -> RELU]*" + "9" * 9999, "column 25: 2 layers 99999999999999999999 times"),
        ("INPUT -> [CONV -> RELU]*127 -> [FC -> RELU]*9 -> FC", "column 32: more than 256 layers so far"),
        ("[" * 5000, "column 17: brackets 17 deep, want at most 16"),
        ("INPUT → FC", "column 7: '→', want a layer, ->"),
        ("INPUT\n->\nFC\n!", "column 13: '!', want"),
    ],
)
def test_what_does_not_hold_is_refused_in_one_line_with_its_column(pattern: str, complaint: str) -> None:
    with pytest.raises(BadTraining) as refused:
        parse(pattern)
    assert str(refused.value).startswith(f"pattern, {complaint}")
    assert "\n" not in str(refused.value)


@given(st.text(alphabet="INPUTCOVRELF -> []*?0123", max_size=60))
def test_any_text_is_either_read_or_refused(pattern: str) -> None:
    try:
        layers = parse(pattern)
    except BadTraining as error:
        complaint = str(error)
    else:
        complaint = "" if len(layers) <= MAX_LAYERS and layers[-1].kind == "FC" else "what is no network was read"
    assert not complaint or complaint.startswith("pattern, column ")
