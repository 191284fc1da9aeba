"""The reader of the text format, beside the one of prometheus-client, which the client does without."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from convoy.service.monitor.exposition import BadExposition, Sample, parse

RECORDED = Path(__file__).with_name("first.txt")


def oracle(text: str) -> list[Sample]:
    return [Sample(*each[:3]) for family in text_string_to_metric_families(text) for each in family.samples]


def test_recorded_text_is_read_as_prometheus_client_reads_it() -> None:
    text = RECORDED.read_text()
    assert len(oracle(text)) > 100
    assert list(parse(text)) == oracle(text)


@given(st.text(), st.text(alphabet='\\"n{},=\n '), st.floats(allow_nan=False))
def test_any_label_and_value_is_read_as_it_was_written(one: str, other: str, value: float) -> None:
    one = one.encode("utf-8", "replace").decode()
    registry = CollectorRegistry()
    Gauge("measured", "With\nlines.", ["one", "other"], registry=registry).labels(one, other).set(value)
    (sample,) = parse(generate_latest(registry).decode())
    assert sample == Sample("measured", {"one": one, "other": other}, value)


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("up 1", Sample("up", {}, 1.0)),
        ("up{} 1", Sample("up", {}, 1.0)),
        ('up { a = "b" , } 2 1700000000000', Sample("up", {"a": "b"}, 2.0)),
        ("bound +Inf", Sample("bound", {}, float("inf"))),
    ],
)
def test_other_ways_of_writing_are_read(line: str, sample: Sample) -> None:
    assert list(parse(f"# HELP up 1\n\n{line}\n")) == [sample]


@pytest.mark.parametrize(
    "line", ["<html>", "up", "up one", 'up{a="b} 1', "up{a=b} 1", 'up{a="b" c="d"} 1', "up 1 2 3", '{"ready": true}']
)
def test_line_of_another_format_is_named(line: str) -> None:
    with pytest.raises(BadExposition, match="want a metric's name, labels and value"):
        list(parse(f"up 1\n{line}\n"))
