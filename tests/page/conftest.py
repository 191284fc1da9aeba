"""The page in a real browser, on a real server with small networks. One browser for all tests; each has its own tab."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.page import networks
from tests.service import networks as small
from tests.service.running import Server
from tests.service.test_overload import PATIENT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

WAIT_MS = 60_000  # what is late on a busy machine comes all the same
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
AXE = "axe-core@4.14.1"
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
CACHE = Path(__file__).parents[2] / ".cache"


def missing(what: str) -> NoReturn:
    """Skips the tests that need what is missing. In CI nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI is true")
    pytest.skip(f"{what} is missing: apt-get install chromium npm, and make install")


def picture(name: str, *, height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3): red, green and blue parts of different sizes, with a little noise that changes no class."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 200
    pixels[: height // 2, : width // 2] = (20, 220, 30)
    pixels[height // 2 :, width // 4 : width // 2] = (10, 30, 180)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return pixels + np.random.default_rng(seed).integers(0, 20, pixels.shape, np.uint8)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks of each task, two of them with samples, and a file that is no network."""
    root = tmp_path_factory.mktemp("repository")
    small.save(small.classifier(), root, "letters", 1)
    small.save(small.classifier(shift=3), root, "letters", 2)
    small.save(small.segmenter(), root, "colours")
    small.save(small.segmenter(confidence=False), root, "plain")
    small.save(networks.brightest_window(), root, "window")
    small.save(small.doubler(), root, "doubler")
    small.save(small.waves(), root, "waves")
    small.save_bytes(b"no network", root, "broken")
    (root / "letters" / "model.toml").write_text('versions = "all"\n')
    for model, version, pixels in (
        ("letters", 2, np.arange(64, dtype=np.uint8).reshape(8, 8) * 3),
        ("letters", 2, np.full((8, 8), 200, np.uint8)),
        ("colours", 1, picture("sample")),
    ):
        folder = root / model / str(version) / "samples"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{len(list(folder.iterdir())) + 1}.png")
    return root


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    """A server for tests that leave it as it was. None of its processes is replaced because it was paused: a picture
    would be refused meanwhile, and the page counts restarts."""
    with Server(repository, ["server.lame_duck_seconds=0", PATIENT]) as server:
        yield server


@pytest.fixture(scope="package")  # no longer: tests elsewhere run event loops of their own in this thread
def browser() -> "Iterator[Browser]":
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright")
    if (chromium := shutil.which("chromium")) is None:
        missing("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """What a tab did that it must not: requests to other hosts, breaches of the content policy, errors of scripts."""

    def __init__(self, page: "Page", host: str) -> None:
        self.requests: list[Request] = []
        self.faults: list[str] = []
        self._host = host
        page.on("request", self._request)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))

    def _request(self, request: "Request") -> None:
        self.requests.append(request)
        url = urlsplit(request.url)
        if url.scheme not in ("blob", "data") and url.netloc != self._host:
            self.faults.append(f"request to {request.url}")

    def _console(self, message: "ConsoleMessage") -> None:
        # That a server refuses a request is no fault of the page, and these tests themselves read canvases often. A
        # browser reports the two in these words.
        mild = ("Failed to load resource", "willReadFrequently")
        if message.type in ("error", "warning") and not any(words in message.text for words in mild):
            self.faults.append(f"console: {message.text}")


Open = Callable[..., "Page"]


@pytest.fixture
def open_page(browser: "Browser", server: Server) -> Iterator[Open]:
    """Opens the page in a tab of its own; looks afterwards for what it must not have done."""
    contexts, watched = [], []

    def open_page(of: Server = server, path: str = "/", wait: bool = True, **options: Any) -> "Page":
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        watch = Watched(page, urlsplit(of.http).netloc)
        page.watched = watch  # type: ignore[attr-defined]  for tests that look at the requests
        watched.append(watch)
        page.goto(of.http + path)
        if wait:
            page.wait_for_selector("#model option", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [fault for each in watched for fault in each.faults] == []


@pytest.fixture
def page(open_page: Open) -> "Page":
    return open_page()


@pytest.fixture(scope="session")
def axe() -> str:
    """The text of axe-core, which judges how accessible a page is. It is no part of the page."""
    file = CACHE / "axe" / "axe.min.js"
    if not file.exists():
        if shutil.which("npm") is None:
            missing("npm")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(
                ["npm", "pack", "--silent", AXE], cwd=file.parent, check=True, timeout=120, capture_output=True
            )
        except (subprocess.SubprocessError, OSError):
            missing(AXE)
        (archive,) = file.parent.glob("axe-core-*.tgz")
        shutil.unpack_archive(archive, file.parent, filter="data")
        (file.parent / "package" / "axe.min.js").rename(file)
        shutil.rmtree(file.parent / "package")
        archive.unlink()
    text = file.read_text()
    assert hashlib.sha256(text.encode()).hexdigest() == AXE_SHA256
    return text


def choose(page: "Page", model: str) -> None:
    """Chooses a model of the list."""
    page.select_option("#model", model)


def answered(page: "Page", count: int = 1) -> None:
    """Waits until so many cards have their answer or their error."""
    page.wait_for_function(
        "count => document.querySelectorAll('.card:not([data-state=waiting])').length >= count", arg=count
    )


def mask_pixels(page: "Page") -> np.ndarray:
    """What the mask's canvas shows, (H, W, 4)."""
    height, width, values = page.evaluate(
        """() => {
            const canvas = document.querySelector('.stage canvas');
            const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return [canvas.height, canvas.width, Array.from(image.data)];
        }"""
    )
    return np.array(values, np.uint8).reshape(height, width, 4)
