"""A real Prometheus scrapes a server under load, and every panel of every dashboard has something to show."""

import json
import math
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convoy.models.export.seal import sealed
from convoy.service.client.client import Client
from convoy.service.client.credentials import Credentials
from convoy.service.client.results import ServerError
from convoy.service.commands.token import line
from convoy.service.errors import ConvoyError
from tests.service import networks
from tests.service.certificates import Authority
from tests.service.running import Server
from tools.ports import free_ports
from tools.watching.dashboards import DASHBOARDS, written
from tools.watching.files import ROOT
from tools.watching.rules import ALERTS

yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.alone  # a scrape that takes longer than 2 s is lost

PATIENCE = 90.0  # seconds
_PAUSE = 0.02  # seconds between two requests of a caller: the server shall be busy, and not full
TOKEN = "token-of-a-test"
# What cannot be provoked here, and why.
WITHOUT_DATA = {"Nodes by provider": "a version has nodes to count only on a GPU"}
# Grafana's: four times the scrape interval at least, and the chosen time.
WINDOWS = {"$__rate_interval": "12s", "$__range": "300s"}


class Watched(NamedTuple):
    """A server, and those that watch it. `targets` is the HOST:PORT of each by name."""

    server: Server
    targets: dict[str, str]
    authority: Path

    def metrics(self) -> str:
        """What the server says, over TLS and with a token."""
        request = urllib.request.Request(
            self.server.metrics.replace("http://", "https://") + "/metrics",
            headers={"authorization": f"Bearer {TOKEN}"},
        )
        context = ssl.create_default_context(cafile=self.authority)
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            text: str = response.read().decode()
        return text

    def ask(self, path: str, program: str = "prometheus", **parameters: str) -> Any:
        """The answer of an API; raises AssertionError with what it says if it refuses."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://{self.targets[program]}{path}?{query}", timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error

    def values(self, expression: str) -> list[float]:
        """The values of an expression now, by series."""
        found = self.ask("/api/v1/query", query=expression)["data"]["result"]
        return [float(series["value"][1]) for series in found]


def mistaken() -> onnx.ModelProto:
    """A network whose weights are not those that its example was made with."""
    model = networks.classifier()
    sealed(model)  # its properties are those of the file
    weights = np.ascontiguousarray(networks.classifier_weights()[:, ::-1])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    return model


@contextmanager
def running(*words: object, log: Path) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen([str(word) for word in words], stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def configuration(folder: Path, server: Server, authority: Path, alertmanager: str) -> Path:
    """The file of deploy/ with its rules, for this server: other addresses, TLS, and all of it in seconds."""
    kept = ROOT / "deploy" / "prometheus"
    shutil.copytree(kept / "rules", folder / "rules")
    settings = yaml.safe_load((kept / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "2s", "evaluation_interval": "1s", "scrape_timeout": "2s"}
    settings["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    (job,) = settings["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [server.metrics.removeprefix("http://")]}]
    job["scheme"] = "https"
    job["tls_config"] = {"ca_file": str(authority)}
    job["authorization"] = {"credentials": TOKEN}
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server with two models, TLS and callers, under mixed load, scraped every 2 s. A third model fails its example,
    and the engine was killed once."""
    programs = {name: shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")}
    for name, path in programs.items():
        if path is None:
            pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp("watched")
    repository = folder / "repository"
    networks.save(networks.classifier(), repository, "letters")
    networks.save(networks.segmenter(), repository, "colours")
    networks.save(mistaken(), repository, "mistaken")
    (repository / "letters" / "model.toml").write_text("latency_objective_ms = 60_000\n")
    (folder / "callers.toml").write_text(line("scraper", TOKEN, ["*"], ["metrics"], None))
    authority = Authority(folder)
    pair = authority.sign("server")
    settings = [
        f"tls.certificate={pair.certificate}",
        f"tls.key={pair.key}",
        f"access.callers={folder / 'callers.toml'}",
        "server.lame_duck_seconds=0",
    ]
    with ExitStack() as stack:
        server = stack.enter_context(Server(repository, settings))
        ports = zip(("prometheus", "alertmanager"), free_ports(2), strict=True)
        targets = {name: f"127.0.0.1:{port}" for name, port in ports}
        stack.enter_context(
            running(
                programs["prometheus-alertmanager"],
                f"--config.file={ROOT / 'deploy' / 'prometheus' / 'alertmanager.yml'}",
                f"--storage.path={folder / 'alertmanager'}",
                f"--web.listen-address={targets['alertmanager']}",
                "--cluster.listen-address=",
                log=folder / "alertmanager.log",
            )
        )
        stack.enter_context(
            running(
                programs["prometheus"],
                f"--config.file={configuration(folder, server, authority.certificate, targets['alertmanager'])}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address={targets['prometheus']}",
                log=folder / "prometheus.log",
            )
        )
        stack.enter_context(load(server, authority.certificate))
        found = Watched(server, targets, authority.certificate)
        # Two scrapes of an engine that has not died yet: a counter that begins has not grown.
        wait_until(lambda: found.values("count_over_time(convoy_engine_restarts_total[60s]) > 1"))
        os.kill(server.children()["engine"], signal.SIGKILL)
        yield found


@contextmanager
def load(server: Server, authority: Path) -> Iterator[None]:
    """Requests of which some are refused or too late."""
    ended = threading.Event()

    def ask() -> None:
        with Client(server.grpc, credentials=Credentials(ca=str(authority), token=TOKEN)) as client:
            while not ended.is_set():
                for act in _acts(client):
                    with suppress(ServerError, ConvoyError):
                        act()
                    ended.wait(_PAUSE)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _acts(client: Client) -> Iterator[Any]:
    letter, picture = np.zeros((8, 8), np.uint8), np.zeros((10, 10, 3), np.uint8)  # padded to 12x12
    yield lambda: client.classify(letter, "letters")
    yield lambda: client.classify_many([letter] * 5, "letters")
    yield lambda: client.segment(picture, "colours")
    yield lambda: client.segment_many([picture] * 3, "colours")
    yield lambda: client.classify(b"no image", "letters")
    yield lambda: client.classify(letter, "unknown")
    yield lambda: client.classify(letter, "letters", deadline=0.0005)


def wait_until(true: Any) -> None:
    """Asks until something is true."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError, AssertionError):
            if true():
                return
        assert time.monotonic() < deadline, "not in time"
        threading.Event().wait(0.25)


def filled_in(expression: str, chosen: dict[str, str]) -> str:
    """An expression as Grafana would send it."""
    for name, value in {**WINDOWS, **{f"${name}": value for name, value in chosen.items()}}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def panels() -> dict[str, list[str]]:
    """The expressions of all panels, by dashboard and title."""
    return {
        f"{each.title}: {panel['title']}": [target["expr"] for target in panel.get("targets", ())]
        for each in DASHBOARDS
        for panel in json.loads(written(each))["panels"]
        if panel["type"] != "row"
    }


def without_data(watched: Watched, chosen: dict[str, str]) -> set[str]:
    """Panels with an expression that has no finite value."""
    return {
        title
        for title, expressions in panels().items()
        for expression in expressions
        if not any(math.isfinite(value) for value in watched.values(filled_in(expression, chosen)))
    }


def empty(watched: Watched, chosen: dict[str, str]) -> set[str]:
    """The same, once it is no more than expected, or PATIENCE is over. No further look: the next scrape may meet a
    server whose engine has just died."""
    expected = {title for title in panels() if title.split(": ")[-1] in WITHOUT_DATA}
    seen: set[str] = set()

    def enough() -> bool:
        nonlocal seen
        seen = without_data(watched, chosen)
        return seen <= expected

    with suppress(AssertionError):
        wait_until(enough)
    return {title.split(": ")[-1] for title in seen}


ALL = dict.fromkeys(("job", "instance", "model", "version"), ".*")


def test_every_expression_of_every_dashboard_returns_data(watched: Watched) -> None:
    assert empty(watched, ALL) == set(WITHOUT_DATA)


def test_one_server_and_two_models_can_be_chosen(watched: Watched) -> None:
    instance = watched.server.metrics.removeprefix("http://").replace(".", r"\\.")
    chosen = {"job": "convoy", "instance": f"({instance})", "model": "(letters|colours)", "version": "1"}
    assert empty(watched, chosen) == set(WITHOUT_DATA)
    nobody = {**ALL, "job": "nobody"}
    assert len(without_data(watched, nobody)) > len(panels()) / 2, "a choice that matches nothing would be seen"


def test_variables_and_annotations_have_something_to_offer(watched: Watched) -> None:
    for each in DASHBOARDS:
        page = json.loads(written(each))
        for variable in page["templating"]["list"][1:]:
            selector, _, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
            found = watched.ask("/api/v1/series", **{"match[]": filled_in(selector, ALL)})["data"]
            assert {series.get(label) for series in found} - {None, ""}, variable["name"]
        (marks,) = page["annotations"]["list"]
        watched.values(filled_in(marks["expr"], ALL))


def test_no_rule_fails(watched: Watched) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = watched.ask("/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"] if group["name"] != "convoy-long-shares"]

    wait_until(lambda: {rule["health"] for rule in rules()} == {"ok"})
    assert {rule["name"] for rule in rules() if rule["type"] == "alerting"} == {alert.name for alert in ALERTS}


def test_shares_of_the_budgets_are_recorded(watched: Watched) -> None:
    def recorded(name: str, model: str) -> list[float]:
        return watched.values(f'convoy:{name}_errors:ratio_rate1h{{model="{model}"}}')

    wait_until(lambda: recorded("latency", "letters") == [0])
    wait_until(lambda: len(recorded("availability", "colours")) == len(recorded("availability", "")) == 1)
    (faults,) = recorded("availability", "colours")
    assert 0 <= faults < 1


def test_a_killed_engine_and_a_failed_example_raise_alerts_that_the_alertmanager_gets(watched: Watched) -> None:
    def arrived() -> set[str]:
        found = watched.ask("/api/v2/alerts", "alertmanager")
        return {alert["labels"]["alertname"] for alert in found}

    wait_until(lambda: {"ConvoyEngineRestarted", "ConvoyExampleFailed"} <= arrived())
    assert not arrived() & {"ConvoyDown", "ConvoyProviderLost", "ConvoyRefusing", "ConvoyEngineRestartsRepeatedly"}


def test_promtool_finds_nothing_wrong_with_the_names_and_helps(watched: Watched) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")

    def complaints(text: str) -> list[str]:
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
        )
        return (checked.stdout + checked.stderr).splitlines()

    ours = [each for each in complaints(watched.metrics()) if not each.startswith("nv_inference_")]
    assert ours == []
    assert complaints("# HELP convoy_bad x\n# TYPE convoy_bad counter\nconvoy_bad 1\n") != []
