"""Requests share runs only where a trial, or whoever deploys the model, says that rows are independent."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from convoy.service.config import Config
from convoy.service.engine.model_loader import Loader
from convoy.service.engine.row_independence import trial
from convoy.service.engine.session import DeviceLost, load
from convoy.service.metrics import MODEL_BATCHED
from convoy.service.repository import Table, TensorSpec, Version
from convoy.service.sources import Source
from tests.service import networks

DEPENDENT = networks.first_sides()
INDEPENDENT = networks.independent()


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    return Loader(Source(tmp_path), Config(), lambda table: None)


def row_of(loader: Loader, model: str) -> Version:
    (row,) = (row for row in loader.table().versions if row.model == model)
    return row


@pytest.mark.parametrize("name", DEPENDENT)
def test_rows_that_are_none_are_found_out(tmp_path: Path, name: str) -> None:
    session = load(networks.save(DEPENDENT[name], tmp_path, "model"), "cpu", 0, 1)
    assert session.batched, "by the names of its sides it could be"
    assert trial(session)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_rows_are_believed(tmp_path: Path, name: str) -> None:
    session = load(networks.save(INDEPENDENT[name], tmp_path, "model"), "cpu", 0, 1)
    assert trial(session, lambda: 0.0) == ""  # however long the machine stands still


class Network:
    """One function [N, 4] -> [N, 4] in place of a session."""

    inputs = (TensorSpec("x", "float32", (None, 4), ("N", "")),)
    outputs = (TensorSpec("y", "float32", (None, 4), ("N", "")),)

    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.error = error
        self.seconds = seconds
        self.now = 0.0
        self.runs = 0

    def run_within(self, arrays: Sequence[NDArray[np.generic]], seconds: float) -> list[NDArray[np.generic]]:
        self.runs += 1
        self.now += self.seconds
        if self.error is not None and len(arrays[0]) > 1:
            raise self.error
        return list(arrays)


def test_network_that_fails_in_company_runs_apart() -> None:
    assert trial(Network(RuntimeError("only one"))) != ""
    assert trial(Network()) == ""


def test_trial_of_a_long_run_is_given_up_at_once() -> None:
    network = Network(seconds=3.0)
    assert "takes so long" in trial(network, lambda: network.now)
    assert network.runs == 2


def test_one_slow_run_says_nothing_about_the_others() -> None:
    network = Network()
    assert trial(network, lambda: 0.0 if network.runs == 0 else 3.0) == ""


def test_trial_of_rows_that_would_fill_the_memory_is_given_up_at_once() -> None:
    network = Network()
    network.inputs = (TensorSpec("x", "float32", (None, 2**31), ("N", "")),)
    assert trial(network) == "a row of the input has 8589934592 bytes: batching gains nothing"
    assert network.runs == 0


def test_lost_device_ends_the_trial() -> None:
    with pytest.raises(DeviceLost):
        trial(Network(DeviceLost("gone")))


def as_long_as_asked() -> onnx.ModelProto:
    """y = x, once as many rounds of a loop are over as its second input says."""
    model = networks.endless()
    (rounds,) = (each for each in model.graph.initializer if each.name == "rounds")
    model.graph.initializer.remove(rounds)
    model.graph.input.append(helper.make_tensor_value_info("rounds", TensorProto.INT64, []))
    return model


def test_run_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    session = load(networks.save(as_long_as_asked(), tmp_path, "model"), "cpu", 0, 1)
    x = np.ones((1, 4), np.float32)
    with pytest.raises(Exception, match="terminate"):
        session.run_within([x, np.array(40_000_000)], 0.01)  # a minute or more, however late the timer is
    assert len(session.run_within([x, np.array(1)], 60)) == 1


def test_dependent_rows_are_reported_once_and_the_model_serves_one_request_at_a_time(
    tmp_path: Path, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    networks.save(DEPENDENT["sum-over-time"], tmp_path, "sums")
    networks.save(INDEPENDENT["doubler"], tmp_path, "doubler")
    loader.refresh()
    loader.refresh()
    sums, doubler = row_of(loader, "sums"), row_of(loader, "doubler")
    assert (sums.state, sums.batched, sums.max_batch_size) == ("READY", False, 1)
    assert sums.reason == "requests run one at a time: rows of output 'y' depend on what else is in the batch"
    assert (doubler.batched, doubler.max_batch_size, doubler.reason) == (True, 32, "")
    assert [MODEL_BATCHED.labels(model, 1)._value.get() for model in ("sums", "doubler")] == [0, 1]
    said = [record.message for record in caplog.records if "one request at a time" in record.message]
    assert len(said) == 1
    assert "sums" in said[0]


@pytest.mark.parametrize("model", ["doubler", "digits"])
def test_model_is_not_batched_where_its_settings_say_so(tmp_path: Path, loader: Loader, model: str) -> None:
    networks.save(networks.classifier() if model == "digits" else networks.doubler(), tmp_path, model)
    (tmp_path / model / "model.toml").write_text("batched = false\n")
    loader.refresh()
    row = row_of(loader, model)
    assert (row.state, row.max_batch_size) == ("READY", 1)
    assert "model.toml" in row.reason


def test_settings_are_believed_before_the_trial(tmp_path: Path, loader: Loader) -> None:
    networks.save(DEPENDENT["no-answer-differs"], tmp_path, "zeros")
    (tmp_path / "zeros" / "model.toml").write_text("batched = true\n")
    loader.refresh()
    assert (row_of(loader, "zeros").batched, row_of(loader, "zeros").max_batch_size) == (True, 32)


def test_batch_is_refused_where_a_first_side_is_fixed(tmp_path: Path, loader: Loader) -> None:
    networks.save(networks.doubler(batched=False), tmp_path, "three")
    (tmp_path / "three" / "model.toml").write_text("batched = true\n")
    loader.refresh()
    row = row_of(loader, "three")
    assert row.state == "UNAVAILABLE"
    assert row.reason == "model.toml: batched = true, but the first side of 'x' is not free"


@pytest.mark.parametrize(
    ("text", "toml", "batched", "most"),
    [
        ("max_batch_size: 0\n", "", False, 1),
        ('name: "doubler"\n  max_batch_size : 4 # of Triton\ninput [ ]', "", True, 4),
        ("max_batch_size: 0\n", "batched = true\n", True, 32),
        ("max_batch_size: 4\n", "max_batch_size = 8\n", True, 8),
        ('platform: "onnxruntime_onnx"\n', "", True, 32),
    ],
)
def test_batch_size_of_tritons_configuration_counts_where_ours_is_silent(
    tmp_path: Path, loader: Loader, caplog: pytest.LogCaptureFixture, text: str, toml: str, batched: bool, most: int
) -> None:
    caplog.set_level("INFO")
    networks.save(networks.doubler(), tmp_path, "doubler")
    (tmp_path / "doubler" / "config.pbtxt").write_text(text)
    (tmp_path / "doubler" / "model.toml").write_text(toml)
    loader.refresh()
    row = row_of(loader, "doubler")
    assert (row.batched, row.max_batch_size) == (batched, most)
    assert any("config.pbtxt" in record.message for record in caplog.records)


def test_unreadable_configuration_of_triton_is_mentioned(
    tmp_path: Path, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    networks.save(networks.doubler(), tmp_path, "doubler")
    (tmp_path / "doubler" / "config.pbtxt").write_bytes(b"\xff\xfe\x00")
    loader.refresh()
    assert row_of(loader, "doubler").state == "READY"
    assert any("does not set max_batch_size" in record.message for record in caplog.records)


def test_version_that_a_batch_has_shown_up_is_batched_no_more(tmp_path: Path) -> None:
    tables: list[Table] = []
    loader = Loader(Source(tmp_path), Config(), tables.append)
    networks.save(networks.doubler(), tmp_path, "doubler")
    loader.refresh()
    assert loader.joins("doubler", 1)
    loader.run_apart("doubler", 1, "output 'y' has shape [1, 4] for 3 rows")
    loader.run_apart("doubler", 1, "a second batch that ended meanwhile")
    assert not loader.joins("doubler", 1)
    row = tables[-1].versions[0]
    assert (row.state, row.batched, row.max_batch_size) == ("READY", False, 1)
    assert row.reason.endswith("has shape [1, 4] for 3 rows")
    assert not loader.versions["doubler", 1].session.batched
