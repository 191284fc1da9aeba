"""A server that knows its callers: the page asks for the token, keeps it in its tab, and sends it."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.page.conftest import answered, choose
from tests.page.test_answers import GREY, encoded, give
from tests.service.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

TOKEN = "convoy_secret"


@pytest.fixture(scope="module")
def guarded(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose only caller may call `letters`."""
    file = tmp_path_factory.mktemp("callers") / "callers.toml"
    file.write_text(f'someone = {{ sha256 = "{sha256(TOKEN.encode()).hexdigest()}", models = ["letters"] }}\n')
    with Server(repository, ["server.lame_duck_seconds=0", f"access.callers={file}"]) as server:
        yield server


@pytest.fixture
def asking(open_page: Callable[..., "Page"], guarded: Server) -> "Page":
    """The page without a token."""
    page = open_page(guarded, wait=False)
    page.wait_for_selector("#token-value")
    return page


def test_page_asks_for_a_token_and_uses_it(asking: "Page") -> None:
    assert asking.inner_text("#status") == "Token needed"
    assert asking.evaluate("document.activeElement.id") == "token-value"
    asking.keyboard.type(TOKEN)
    asking.keyboard.press("Enter")
    asking.wait_for_selector("#model option", state="attached")
    assert not asking.is_visible("#token")
    # What the caller may not call is not there.
    assert set(asking.locator("#model option").all_inner_texts()) == {
        "letters",
        "letters, version 1",
        "letters, version 2",
    }
    choose(asking, "letters")
    asking.wait_for_selector("#samples img")
    with asking.expect_request("**:classify*") as request:
        give(asking, ("digit.png", encoded(GREY)))
    answered(asking)
    assert request.value.headers["authorization"] == f"Bearer {TOKEN}"
    assert asking.locator(".card[data-state=answered]").count() == 1
    asking.click("nav >> text=Live")
    asking.wait_for_selector(".tiles dd")
    assert "colours" not in asking.inner_text("#view-live")
    asking.click("nav >> text=Try")
    assert "$TOKEN" in asking.inner_text("#call")
    assert TOKEN not in asking.content()


def test_token_lasts_as_long_as_the_tab(asking: "Page") -> None:
    asking.fill("#token-value", TOKEN)
    asking.click("#token button")
    asking.wait_for_selector("#model option", state="attached")
    asking.reload()
    asking.wait_for_selector("#model option", state="attached")
    assert not asking.is_visible("#token")
    assert asking.evaluate("Object.values(localStorage)") == []
    assert asking.context.cookies() == []
    other = asking.context.new_page()
    other.goto(asking.url)
    other.wait_for_selector("#token-value")


def test_wrong_token_is_told(asking: "Page") -> None:
    asking.fill("#token-value", "wrong")
    asking.click("#token button")
    asking.wait_for_selector("text=The server refuses this token")
    assert asking.is_visible("#token-value")
