"""The panels: which models there are and why one does not serve, and what the server does now."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from tests.page.test_answers import GREY, encoded
from tests.service import networks
from tests.service.running import Server
from tests.service.test_overload import PATIENT

if TYPE_CHECKING:
    from playwright.sync_api import Page

TILES = """() => Object.fromEntries(
    [...document.querySelectorAll(".tiles dt")].map((name) => [name.textContent, name.nextElementSibling.textContent])
)"""
QUANTILE = "async ([counts, bounds, share]) => (await import('/page/live.js')).quantile(counts, bounds, share)"


def test_models_panel_shows_every_version_and_its_state(page: "Page") -> None:
    page.click("nav >> text=Models")
    page.wait_for_selector(".model")
    rows = page.locator(".model").evaluate_all(
        "cards => cards.map(({dataset}) => `${dataset.model}/${dataset.version}`)"
    )
    assert rows == ["broken/1", "colours/1", "doubler/1", "letters/2", "letters/1", "plain/1", "waves/1", "window/1"]
    broken = page.inner_text("[data-model=broken]")
    assert "Not available" in broken
    assert "it is no ONNX file" in broken
    colours = page.inner_text("[data-model=colours]")
    for words in ("Ready", "segmentation", "any size, colour", "CPU", "red", "green", "blue"):
        assert words in colours
    assert "8 × 8, grey" in page.inner_text("[data-model=letters] >> nth=0")
    assert "waveform: channel 3 × time (any)" in page.inner_text("[data-model=waves]")
    assert "x FP32 [any, 4]" in page.inner_text("[data-model=doubler]")


def test_models_panel_shows_accuracy_and_parity(page: "Page") -> None:
    described = page.evaluate("fetch('/api/models').then((response) => response.json())")
    (row,) = [row for row in described["models"] if (row["model"], row["version"]) == ("letters", 2)]
    row |= {"architecture": "lenet5", "data": "digits", "metrics": {"top1": 0.9912, "loss": 0.0312}}
    row |= {"parity": {"images": 256, "max_abs_difference": 3.2e-7, "top1_agreement": 1.0, "mask_agreement": None}}
    row |= {"labels": [f"label {number}" for number in range(1000)]}
    page.route("**/api/models", lambda route: route.fulfill(json=described))
    page.goto(page.url.partition("#")[0] + "?#models")
    text = page.inner_text("[data-model=letters][data-version='2']")
    for words in ("99.1 %", "0.03120", "100 % of predictions equal on 256 inputs", "3.2e-7", "lenet5", "digits"):
        assert words in text
    assert "988 more labels" in text
    assert page.locator("[data-model=letters] .chips li").count() < 100
    page.click("text=988 more labels")
    assert page.inner_text("[data-version='2'] details li:last-child") == "label 999"


def test_model_of_the_panel_can_be_tried(page: "Page") -> None:
    page.click("nav >> text=Models")
    page.click("[data-model=letters][data-version='1'] button")
    page.wait_for_selector("#view-try")
    assert page.input_value("#model") == "letters/1"


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that change it; nothing but a test ends one of its processes."""
    repository = tmp_path_factory.mktemp("changing")
    networks.save(networks.classifier(), repository, "first")
    with Server(repository, ["server.lame_duck_seconds=0", PATIENT]) as server:
        yield server


def test_model_that_comes_later_appears(open_page: Callable[..., "Page"], changing: Server) -> None:
    page = open_page(changing)
    after = len(changing.log)
    networks.save(networks.segmenter(), changing.repository, "second")
    changing.wait_for_log("model second version 1 serves", after=after)
    page.evaluate("performance.now = ((now) => () => now() + 60_000)(performance.now.bind(performance))")
    page.wait_for_selector("#model option[value=second]", state="attached")
    assert page.input_value("#model") == "first"


def test_restarts_are_counted(open_page: Callable[..., "Page"], changing: Server) -> None:
    page = open_page(changing, path="/#live")
    os.kill(changing.children()["engine"], signal.SIGKILL)
    tile = "() => document.querySelectorAll('.tiles dd')[6]?.textContent === '1'"
    page.wait_for_function(tile)
    assert page.locator(".tiles dt").all_inner_texts()[6] == "Restarts of processes"
    assert json.loads(changing.get(f"{changing.http}/api/live")[1])["restarts"] == {"engine": 1, "frontend": 0}


def test_address_of_a_panel_opens_it(open_page: Callable[..., "Page"]) -> None:
    page = open_page(path="/#models")
    page.wait_for_selector(".model")
    assert page.get_attribute("nav [aria-current]", "href") == "#models"
    page.click("nav >> text=Try")
    page.go_back()
    page.wait_for_selector("#view-models")  # the page hears of it a moment later


def test_live_panel_shows_what_the_server_does(page: "Page", server: Server) -> None:
    page.click("nav >> text=Live")
    page.wait_for_selector(".tiles dd")
    deadline = time.monotonic() + 60
    with Client(server.grpc) as client:
        with pytest.raises(ServerError, match="JPEG or PNG"):
            client.classify(b"no picture", model="letters")
        # Again and again: after a pause of more than five seconds the panel forgets what it had seen.
        while (tiles := page.evaluate(TILES))["Requests a second"] in ("–", "0") or not tiles["p50"].endswith("ms"):
            assert time.monotonic() < deadline, tiles
            for _ in range(30):
                client.classify(encoded(GREY), model="letters")
            page.wait_for_timeout(100)
    assert tiles["Runs on"] == "CPU"
    assert tiles["Restarts of processes"] == "0"
    rows = page.locator("tbody tr").all_inner_texts()
    assert [row.split()[0] for row in rows][:4] == ["receive", "decode", "preprocess", "queue"]
    assert all("ms" in row for row in rows)
    assert "BAD_IMAGE" in page.inner_text("#live")
    assert page.locator(".counts >> nth=0").inner_text().split()[0] == "1"
    page.wait_for_function("() => document.querySelector('figure svg path').getAttribute('d').includes('L')")
    page.select_option("#live-model", "plain")
    assert "BAD_IMAGE" not in page.inner_text("#live")


def pass_seconds(page: "Page") -> None:
    """Lets eight seconds pass, in which the server answers whatever is asked."""
    for _ in range(4):
        page.clock.run_for(2000)
        page.evaluate("fetch('/api/live?of=the-test').then((response) => response.text())")


def test_live_panel_asks_each_second_and_only_while_it_is_seen(page: "Page") -> None:
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/api/live") else None)
    page.clock.install()  # so that ten seconds take no time
    page.click("nav >> text=Live")
    page.wait_for_selector(".tiles dd")
    with page.expect_response("**/api/live"):
        page.clock.run_for(1500)
    show = "(to) => { Object.defineProperty(document, 'visibilityState', {value: to, configurable: true});"
    show += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(show, "hidden")
    count = len(asked)
    pass_seconds(page)
    assert len(asked) <= count + 1  # one may have been on its way
    with page.expect_request("**/api/live"):
        page.evaluate(show, "visible")
    page.click("nav >> text=Models")
    page.wait_for_selector(".model")
    count = len(asked)
    pass_seconds(page)
    assert len(asked) <= count + 1


def test_live_panel_survives_a_server_that_is_gone(page: "Page") -> None:
    page.click("nav >> text=Live")
    page.wait_for_selector(".tiles dd")
    page.route("**/api/live", lambda route: route.abort())
    page.wait_for_selector("#live .reason:visible")
    page.unroute("**/api/live")
    page.wait_for_selector("#live .reason", state="hidden")
    page.watched.faults.clear()  # type: ignore[attr-defined]


def test_quantile_of_a_histogram(page: "Page") -> None:
    for counts, share, expected in (
        ([4, 0, 0, 0], 0.5, 0.5),
        ([0, 4, 0, 0], 0.5, 1.5),
        ([1, 1, 0, 0], 0.5, 1),
        ([1, 0, 1, 0], 0.99, 3.96),
        ([0, 0, 0, 5], 0.5, 4),
    ):
        assert page.evaluate(QUANTILE, [counts, [1, 2, 4], share]) == pytest.approx(expected)
    assert page.evaluate(QUANTILE, [[0, 0, 0, 0], [1, 2, 4], 0.5]) is None


def test_figures_are_those_of_the_metrics(server: Server) -> None:
    with Client(server.grpc) as client:
        for _ in range(3):
            client.classify(encoded(GREY), model="letters")
    figures = json.loads(server.get(f"{server.http}/api/live")[1])
    (letters,) = [each for each in figures["versions"] if (each["model"], each["version"]) == ("letters", 2)]
    assert letters["images"] == server.total("convoy_images_total", model="letters", version="2")
    assert letters["requests"]["OK"] == server.total(
        "convoy_request_duration_seconds_count", model="letters", version="2", code="OK"
    )
    assert sum(letters["duration"]["counts"]) == letters["requests"]["OK"]
    assert {stage: sum(each["counts"]) for stage, each in letters["stages"].items()} == dict.fromkeys(
        figures["stages"], letters["images"]
    )
    assert sum(int(size) * count for size, count in letters["batch_sizes"].items()) == server.total(
        "convoy_batch_size_sum", model="letters", version="2"
    )
    assert len(letters["duration"]["counts"]) == len(figures["bounds"]) + 1
