"""The page for everybody: screen readers, keys alone, small and dark screens, large text, no motion."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.page.conftest import answered, choose, picture
from tests.page.test_answers import GREY, encoded, give

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]
PHONE = {"width": 320, "height": 640}
# What a panel shows once it is open: the one before it is hidden by then.
PANELS = {"Models": ".model:visible", "Live": ".tiles dd:visible"}
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light"},
    "dark phone": {"viewport": PHONE, "color_scheme": "dark"},
}


def fill(page: "Page") -> None:
    """One answer of each kind, and an error."""
    choose(page, "letters")
    give(page, ("digit.png", encoded(GREY)), ("none.png", b"no picture"))
    answered(page, 2)
    choose(page, "colours")
    give(page, ("scene.png", encoded(picture("scene"))))
    answered(page, 3)
    choose(page, "window")
    give(page, ("window.png", encoded(picture("window"))))
    answered(page, 4)
    choose(page, "letters")
    page.wait_for_selector("#samples img")


def violations(page: "Page") -> list[str]:
    """What axe finds, in all the rules it has."""
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((results) => results.violations)")
    return [f"{each['id']}: {node['html']} {node['failureSummary']}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing(open_page: Open, axe: str, screen: str) -> None:
    page = open_page(**SCREENS[screen])
    page.evaluate(axe)
    fill(page)
    assert violations(page) == []
    for panel, content in PANELS.items():
        page.click(f"nav >> text={panel}")
        page.wait_for_selector(content)
        assert violations(page) == []


def test_axe_would_find_something(page: "Page", axe: str) -> None:
    page.evaluate(axe)
    page.evaluate("document.querySelector('label[for=model]').remove()")
    assert any(each.startswith("select-name") for each in violations(page))


# 320 pixels are 400 % of a screen of 1280: nothing may need to be scrolled in two directions.
@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_the_screen(open_page: Open, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 700})
    fill(page)
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= width
    for panel, content in PANELS.items():
        page.click(f"nav >> text={panel}")
        page.wait_for_selector(content)
        assert page.evaluate(wide) <= width


def test_large_text_loses_nothing(open_page: Open) -> None:
    page = open_page()
    fill(page)
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    cut = page.evaluate(
        """() => [...document.querySelectorAll('#view-try *')].filter((element) =>
            element.scrollWidth > element.clientWidth + 2 && getComputedStyle(element).overflowX === 'hidden'
            && !element.closest('.hidden-text')).map((element) => element.className)"""
    )
    assert cut == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_keys_reach_everything_and_leave_it(page: "Page") -> None:
    fill(page)
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(80):
        page.keyboard.press("Tab")
        name, ringed = page.evaluate(
            """() => {
                const element = document.activeElement;
                const label = element.getAttribute('aria-label');
                const name = element.id || label || element.textContent.trim() || element.type;
                return [name, element === document.body || getComputedStyle(element).outlineStyle !== 'none'];
            }"""
        )
        assert ringed, f"the focus cannot be seen on {name}"
        seen.append(name)
        if name == "HTTP API":
            break
    for wanted in ("model", "choose", "photograph", "top-k", "clear", "tab-curl", "call", "copy", "HTTP API"):
        assert wanted in seen
    assert seen[:5] == ["Skip to the content", "Try", "Models", "Live", "model"]
    assert any(name.startswith("Mask of scene.png") for name in seen)
    assert any(name.startswith("Opacity of the") for name in seen)


def test_skip_link_goes_to_the_content(page: "Page") -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'main'")
    assert page.is_visible("#view-try")


def test_tabs_of_the_code_are_chosen_with_arrows(page: "Page") -> None:
    page.focus("#tab-curl")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-python"
    assert page.get_attribute("#tab-python", "aria-selected") == "true"
    assert "import" in page.inner_text("#call")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "tab-grpcurl"


def test_answers_and_errors_are_read_out(page: "Page") -> None:
    choose(page, "letters")
    give(page, ("digit.png", encoded(GREY)))
    answered(page)
    assert page.get_attribute("#said", "role") == "status"
    assert page.inner_text("#said").startswith("digit.png: ")
    give(page, ("none.png", b"no picture"))
    answered(page, 2)
    assert page.inner_text("#said").startswith("none.png: ")


def test_removing_a_card_leaves_the_focus_in_the_page(page: "Page") -> None:
    choose(page, "letters")
    give(page, ("digit.png", encoded(GREY)))
    answered(page)
    page.focus("[aria-label='Remove digit.png']")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "choose"


def test_nothing_moves_where_nobody_wants_it(open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    assert page.locator("#drop").evaluate("drop => getComputedStyle(drop).transitionProperty") == "none"
