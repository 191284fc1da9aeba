"""The calls that the page shows do what they say: they are run here as they are copied."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.documents import grpcurl
from tests.page.conftest import choose, picture
from tests.service.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def page(browser: "Browser", server: Server) -> "Iterator[Page]":
    """One tab for all: the calls are read, and run elsewhere."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.http)
    page.wait_for_selector("#model option", state="attached")
    yield page
    context.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the calls run: the picture they name is there."""
    Image.fromarray(picture("call")).save(tmp_path / "picture.png")
    return tmp_path


def call(page: "Page", kind: str) -> str:
    page.click(f"#tab-{kind}")
    return page.inner_text("#call")


def run(folder: Path, command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_classifies(page: "Page", server: Server, folder: Path) -> None:
    choose(page, "letters/1")
    page.fill("#top-k", "2")
    text = call(page, "curl")
    assert f"{server.http}/v1/models/letters/versions/1:classify?top_k=2" in text
    answer = json.loads(run(folder, ["sh", "-c", text]))
    assert (answer["model"], answer["version"], len(answer["results"][0]["labels"])) == ("letters", 1, 2)


def test_curl_segments_and_draws(page: "Page", folder: Path) -> None:
    choose(page, "colours")
    lines = run(folder, ["sh", "-c", call(page, "curl")])
    assert "confidence_png" in json.loads(lines)["results"][0]
    with Image.open(folder / "overlay.png") as image:
        assert image.size == (64, 48)


def test_curl_asks_with_tensors(page: "Page", folder: Path) -> None:
    choose(page, "doubler")
    answer = json.loads(run(folder, ["sh", "-c", call(page, "curl")]))
    assert {output["name"] for output in answer["outputs"]} == {"y", "total"}


def test_curl_locates(page: "Page", folder: Path) -> None:
    choose(page, "window")
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[100:106, 200:210] = 255
    (folder / "pixels.raw").write_bytes(pixels.tobytes())
    answer = json.loads(run(folder, ["sh", "-c", call(page, "curl")]))
    data = {output["name"]: output["data"] for output in answer["outputs"]}
    assert np.ravel(data["location"]).tolist() == [100, 200]


@pytest.mark.parametrize(
    ("model", "expected"),
    [("letters", r"^[a-j] 0\.\d+"), ("colours", r"^\(48, 64\) uint8$"), ("window", r"^row, column:")],
)
def test_python_runs(page: "Page", folder: Path, model: str, expected: str) -> None:
    choose(page, model)
    assert re.search(expected, run(folder, [sys.executable, "-c", call(page, "python")]))


def test_python_asks_with_tensors(page: "Page", folder: Path) -> None:
    choose(page, "doubler")
    assert "'model_name': 'doubler'" in run(folder, [sys.executable, "-c", call(page, "python")])


def played(folder: Path, text: str) -> dict[str, Any]:
    """The answer to a call of grpcurl, which is played by a program with the same options."""
    programs = folder / "bin"
    programs.mkdir()
    grpcurl.install(programs)
    words = f"set -euo pipefail\nPATH={shlex.quote(str(programs))}:$PATH\n{text}"
    answer: dict[str, Any] = json.loads(run(folder, ["bash", "-c", words]))
    return answer


@pytest.mark.parametrize("model", ["letters", "colours"])
def test_grpcurl_asks_about_pictures(page: "Page", server: Server, folder: Path, model: str) -> None:
    choose(page, model)
    text = call(page, "grpcurl")
    method = "Classify" if model == "letters" else "Segment"
    command = text.partition("|\n")[2]
    assert command.split() == ["grpcurl", "-plaintext", "-d", "@", server.grpc, f"convoy.v1.Vision/{method}"]
    answer = played(folder, text)
    assert answer["model"] == model
    (result,) = answer["results"]
    assert "labels" in result["classification"] if model == "letters" else "mask" in result["segmentation"]


@pytest.mark.parametrize("model", ["window", "doubler"])
def test_grpcurl_asks_with_tensors(page: "Page", folder: Path, model: str) -> None:
    choose(page, model)
    (folder / "pixels.raw").write_bytes(bytes(480 * 640 * 3))
    answer = played(folder, call(page, "grpcurl"))
    assert answer["modelName"] == model
    assert answer["outputs"]


def test_calls_follow_the_options(page: "Page") -> None:
    choose(page, "colours")
    assert "with_confidence=True" in call(page, "python")
    page.uncheck("#confidence")
    page.check("#low")
    assert "with_confidence" not in call(page, "python")
    assert 'priority="low"' in call(page, "python")
    assert "confidence=1" not in call(page, "curl")
    assert "priority=low" in call(page, "curl")
    assert "PRIORITY_LOW" in call(page, "grpcurl")
    page.check("#confidence")
    page.uncheck("#low")


def test_call_is_copied(open_page: Callable[..., "Page"]) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    choose(page, "letters")
    # The button says so for two seconds, in which nobody may look.
    page.evaluate(
        """() => {
            const copy = document.querySelector("#copy");
            new MutationObserver(() => { window.copied ||= copy.textContent === "Copied"; })
                .observe(copy, { childList: true });
        }"""
    )
    page.click("#copy")
    page.wait_for_function("window.copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.text_content("#call")
