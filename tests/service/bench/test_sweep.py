"""Servers that are started to be compared: what they serve, and what becomes of one that cannot."""

from pathlib import Path

import pytest

from convoy.service.bench import sweep
from convoy.service.bench.sweep import Served, ServerFailed, Way
from tests.service import networks
from tests.service.bench.clocks import begin_with_a_request


def test_figure_of_a_way_is_the_median_of_its_rounds() -> None:
    assert Served(rounds=[1.0, 9.0, 2.0], mean_batch_size=1.0).images_per_second == 2.0


def test_ways_take_turns_and_every_other_round_is_backwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sweep, "_WARM_UP", 0.0)
    begin_with_a_request(monkeypatch, answered=True)  # the first one of a server may take longer than all of the load
    networks.save(networks.classifier(), tmp_path, "model")
    started: list[int] = []
    real = sweep.server

    def counted(way: Way) -> object:
        started.append(int(way.settings[0][-1]))
        return real(way)

    monkeypatch.setattr(sweep, "server", counted)
    ways = [Way(tmp_path, (f"batching.max_batch_size={size}",)) for size in (1, 2)]
    found = sweep.sweep("model", ways, 4, 1.0, 2, (networks.SIDE, networks.SIDE))
    assert started == [1, 2, 2, 1]
    assert [len(each.rounds) for each in found] == [2, 2]
    assert min(rate for each in found for rate in each.rounds) > 0
    assert found[0].mean_batch_size == 1.0 < found[1].mean_batch_size <= 2.0


def test_server_that_refuses_its_settings_says_why(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "model")
    with (
        pytest.raises(ServerFailed, match=r"batching\.max_batch_size is 0, want int >= 1"),
        sweep.server(Way(tmp_path, ("batching.max_batch_size=0",))),
    ):
        pass


def test_model_that_cannot_be_loaded_is_reported_with_its_reason(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "model").write_bytes(b"not a network")
    with pytest.raises(ServerFailed, match="it is no ONNX file"):
        sweep.sweep("model", [Way(tmp_path, ())], 1, 0.1, 1, (8, 8))
