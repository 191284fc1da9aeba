"""Pictures into the page, answers out: ranked bars, masks, heat maps, errors; and what each of them lets one do."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from convoy.service.client.client import Client
from tests.page import networks
from tests.page.conftest import answered, choose, mask_pixels, picture
from tests.service.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

Convert = Callable[[np.ndarray, str], bytes]


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def give(page: "Page", *files: tuple[str, bytes], kind: str = "") -> None:
    """Picks files, as if in the dialog."""
    page.set_input_files("#files", [{"name": name, "mimeType": kind, "buffer": data} for name, data in files])


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3


def test_classification_shows_ranked_bars(page: "Page", server: Server) -> None:
    choose(page, "letters")
    give(page, ("digit.png", encoded(GREY)))
    answered(page)
    with Client(server.grpc) as client:
        labels = client.classify(encoded(GREY), model="letters", top_k=5).labels
    assert page.locator(".bars .bar-name").all_inner_texts() == [label.name for label in labels]
    shown = [float(text.removesuffix(" %")) for text in page.locator(".bars .bar-value").all_inner_texts()]
    assert shown == [round(100 * label.probability, 1) for label in labels]
    widths = page.locator(".bars .bar > span").evaluate_all(
        "bars => bars.map(bar => bar.getBoundingClientRect().width)"
    )
    assert widths == sorted(widths, reverse=True)
    assert labels[0].name in page.inner_text("#said")


def test_options_are_sent(page: "Page") -> None:
    choose(page, "letters")
    page.fill("#top-k", "3")
    page.check("#low")
    with page.expect_request("**:classify*") as request:
        give(page, ("digit.png", encoded(GREY)))
    assert request.value.url.endswith("/v1/models/letters:classify?top_k=3&priority=low")
    answered(page)
    assert page.locator(".bars li").count() == 3


def test_version_can_be_chosen(page: "Page") -> None:
    choose(page, "letters/1")
    give(page, ("digit.png", encoded(GREY)))
    answered(page)
    assert "letters, version 1" in page.inner_text(".timings")


def test_sample_is_asked_with_a_click(page: "Page") -> None:
    choose(page, "letters")
    page.click("#samples li:nth-child(2) button")
    answered(page)
    assert page.inner_text(".card h4") == "sample 2 of letters"
    assert "letters, version 2" in page.inner_text(".timings")


def test_dropped_picture_is_asked_wherever_it_falls(page: "Page") -> None:
    choose(page, "letters")
    drop(page, "footer", [("one.png", encoded(GREY)), ("two.png", encoded(GREY // 2))])
    answered(page, 2)
    assert page.locator(".card h4").all_inner_texts() == ["one.png", "two.png"]


def test_pasted_picture_is_asked(page: "Page") -> None:
    choose(page, "letters")
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const clipboard = new DataTransfer();
            clipboard.items.add(new File([bytes], "image.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: clipboard, bubbles: true }));
        }""",
        base64.b64encode(encoded(GREY)).decode(),
    )
    answered(page)
    assert page.locator(".card[data-state=answered]").count() == 1


def test_camera_makes_a_picture(page: "Page") -> None:
    choose(page, "letters")
    page.click("#photograph")
    page.click("dialog button:enabled.primary")
    answered(page)
    assert page.inner_text(".card h4") == "photo.jpg"
    assert page.locator("dialog").count() == 0
    assert page.get_attribute("#camera", "capture") == "environment"


def test_phone_uses_its_own_camera(open_page: Callable[..., "Page"]) -> None:
    page = open_page(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    choose(page, "letters")
    with page.expect_file_chooser() as chooser:
        page.click("#photograph")
    chooser.value.set_files([{"name": "photo.png", "mimeType": "image/png", "buffer": encoded(GREY)}])
    answered(page)
    assert page.inner_text(".card h4") == "photo.png"


def test_several_pictures_have_their_own_cards_in_their_order(page: "Page") -> None:
    choose(page, "letters")
    files = [(f"{number}.png", encoded(GREY // (number + 1))) for number in range(12)]
    files[5] = ("5.png", b"no picture")
    drop(page, "#drop", files)
    answered(page, 12)
    assert page.locator(".card h4").all_inner_texts() == [f"{number}.png" for number in range(12)]
    states = page.locator(".card").evaluate_all("cards => cards.map((card) => card.dataset.state)")
    assert states == ["answered"] * 5 + ["failed"] + ["answered"] * 6
    assert "BAD_IMAGE" in page.inner_text(".card[data-state=failed]")


def test_newer_answers_come_first_and_can_be_removed(page: "Page") -> None:
    choose(page, "letters")
    give(page, ("old.png", encoded(GREY)))
    answered(page)
    give(page, ("new.png", encoded(GREY)))
    answered(page, 2)
    assert page.locator(".card h4").all_inner_texts() == ["new.png", "old.png"]
    page.click("[aria-label='Remove new.png']")
    assert page.locator(".card h4").all_inner_texts() == ["old.png"]
    page.click("#clear")
    assert page.locator(".card").count() == 0
    assert page.is_visible("#nothing")


def test_picture_that_the_server_does_not_read_is_converted_here(page: "Page", server: Server) -> None:
    choose(page, "colours")
    give(page, ("picture.webp", encoded(picture("webp"), "WEBP", lossless=True)))
    answered(page)
    assert "Your browser has made a PNG" in page.inner_text(".card .note")
    with Client(server.grpc) as client:
        mask = client.segment(encoded(picture("webp")), model="colours").mask
    assert (shown_classes(page) == mask).all()


def test_picture_that_nobody_reads_says_so(page: "Page") -> None:
    choose(page, "letters")
    give(page, ("scan.tiff", encoded(GREY, "TIFF")))
    answered(page)
    text = page.inner_text(".card[data-state=failed]")
    assert "Neither the server nor this browser can read this file" in text
    assert "JPEG or PNG" in text


def test_file_that_calls_itself_json_is_sent_as_bytes(page: "Page") -> None:
    choose(page, "letters")
    page.set_input_files("#files", [{"name": "x.json", "mimeType": "application/json", "buffer": encoded(GREY)}])
    answered(page)
    assert page.locator(".card[data-state=answered]").count() == 1


def test_server_that_is_gone_is_told_and_can_be_asked_again(page: "Page") -> None:
    choose(page, "letters")
    page.route("**/v1/**", lambda route: route.abort())
    give(page, ("digit.png", encoded(GREY)))
    answered(page)
    assert "The server does not answer." in page.inner_text(".card")
    page.unroute("**/v1/**")
    page.watched.faults.clear()  # type: ignore[attr-defined]  the browser reports the request that failed
    page.click("text=Try again")
    page.wait_for_selector(".card[data-state=answered]")


def test_busy_server_says_when_to_ask_again(page: "Page") -> None:
    choose(page, "letters")
    body = '{"error": "1024 requests are in flight", "reason": "QUEUE_FULL", "retry_after": 0.25}'
    page.route("**/v1/**", lambda route: route.fulfill(status=429, content_type="application/json", body=body))
    give(page, ("digit.png", encoded(GREY)))
    answered(page)
    text = page.inner_text(".card")
    assert "QUEUE_FULL 1024 requests are in flight Try again in 250 ms." in text
    assert page.is_visible("text=Try again >> nth=0")


def test_names_from_files_are_text_not_html(page: "Page") -> None:
    choose(page, "letters")
    give(page, ("<img src=x onerror=alert(1)>.png", encoded(GREY)))
    answered(page)
    assert page.inner_text(".card h4") == "<img src=x onerror=alert(1)>.png"


def test_timings_are_those_of_this_answer(page: "Page") -> None:
    choose(page, "letters")
    with page.expect_response("**:classify*") as response:
        give(page, ("digit.png", encoded(GREY)))
    answered(page)
    times = response.value.json()["results"][0]["timings"]
    stages = {name.removesuffix("_seconds"): value for name, value in times.items() if name.endswith("_seconds")}
    total = stages.pop("total")
    assert float(page.get_attribute(".timings", "data-total") or "") == total
    shown = page.locator(".times-legend li").all_inner_texts()
    assert [text.split()[0] for text in shown] == [name for name, value in stages.items() if value > 0]
    widths = page.locator(".times span").evaluate_all(
        "spans => spans.map((span) => span.getBoundingClientRect().width)"
    )
    whole = page.evaluate("document.querySelector('.times').getBoundingClientRect().width")
    assert sum(widths) == pytest.approx(whole, abs=2)
    longest = max(stages, key=lambda name: stages[name])
    assert page.get_attribute(f".times [data-stage={longest}]", "title") is not None
    assert max(widths) == pytest.approx(whole * stages[longest] / total, rel=0.1, abs=10)
    facts = page.inner_text(".timings .facts")
    assert "letters, version 2" in facts
    assert "CPU" in facts
    assert "Batch\n1" in facts


def shown_classes(page: "Page") -> np.ndarray:
    """The class of each pixel by the mask's colour; 255 where nothing is drawn."""
    pixels = mask_pixels(page)
    palette = np.array([(200, 0, 0), (0, 200, 0), (0, 0, 200)])
    classes = (pixels[..., None, :3] == palette).all(-1).argmax(-1)
    return np.where(pixels[..., 3] == 255, classes, 255)


def drop(page: "Page", selector: str, files: list[tuple[str, bytes]]) -> None:
    data = [[name, base64.b64encode(content).decode()] for name, content in files]
    page.evaluate(
        """([selector, files]) => {
            const transfer = new DataTransfer();
            for (const [name, content] of files) {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name));
            }
            for (const kind of ["dragover", "drop"]) {
                const event = new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
                document.querySelector(selector).dispatchEvent(event);
            }
        }""",
        [selector, data],
    )


@pytest.fixture
def segmented(page: "Page") -> "Page":
    """A picture with its mask."""
    choose(page, "colours")
    give(page, ("scene.png", encoded(picture("scene"))))
    answered(page)
    return page


def test_mask_is_the_servers_pixel_by_pixel(segmented: "Page", server: Server) -> None:
    with Client(server.grpc) as client:
        mask = client.segment(encoded(picture("scene")), model="colours").mask
    assert (shown_classes(segmented) == mask).all()


def test_slider_sets_the_opacity(segmented: "Page") -> None:
    slider = segmented.locator("input[type=range]")
    slider.focus()
    slider.press("Home")
    assert segmented.locator(".stage canvas").evaluate("canvas => getComputedStyle(canvas).opacity") == "0"
    slider.press("End")
    assert segmented.locator(".stage canvas").evaluate("canvas => getComputedStyle(canvas).opacity") == "1"


def test_key_and_button_hide_the_mask(segmented: "Page") -> None:
    for press in (lambda: segmented.keyboard.press("m"), lambda: segmented.click("text=Mask")):
        assert segmented.is_visible(".stage canvas")
        press()
        assert not segmented.is_visible(".stage canvas")
        assert segmented.get_attribute("button:has-text('Mask')", "aria-pressed") == "false"
        press()
    assert segmented.is_visible(".stage canvas")
    segmented.focus("#top-k") if segmented.is_visible("#top-k") else segmented.focus("#model")
    segmented.keyboard.press("m")  # in a field it is a letter
    assert segmented.is_visible(".stage canvas")


def test_legend_lights_up_a_class_and_hides_it(segmented: "Page") -> None:
    def alphas() -> dict[int, set[int]]:
        pixels = mask_pixels(segmented)
        mask = picture("scene").argmax(-1)
        return {index: set(pixels[..., 3][mask == index].tolist()) for index in range(3)}

    green = segmented.locator("[data-class='1']")
    assert alphas() == {0: {255}, 1: {255}, 2: {255}}
    green.hover()
    assert alphas() == {0: {40}, 1: {255}, 2: {40}}
    segmented.mouse.move(0, 0)
    assert alphas() == {0: {255}, 1: {255}, 2: {255}}
    segmented.keyboard.press("Tab")  # the ring of the focus is for keys
    green.focus()
    assert alphas()[0] == {40}
    green.press("Enter")
    assert green.get_attribute("aria-pressed") == "false"
    assert alphas()[1] == {0}
    green.press("Space")
    assert green.get_attribute("aria-pressed") == "true"


def test_background_does_not_hide_the_picture(page: "Page") -> None:
    shown = page.evaluate(
        """async () => {
            const { view } = await import("/page/mask.js");
            const names = ["background", "cat"];
            const class_pixels = names.map((name, class_index) => ({ class_index, name, pixels: 2 }));
            const run_lengths = [{ class_index: 0, counts: "02" + "2" }, { class_index: 1, counts: "22" }];
            const result = { height_px: 2, width_px: 2, class_pixels, run_lengths };
            const told = { result, info: { palette: [[0, 0, 0], [9, 9, 9]] }, url: "data:,", name: "x" };
            const { element } = await view(told);
            return [...element.querySelectorAll(".entry")].map((entry) => entry.ariaPressed);
        }"""
    )
    assert shown == ["false", "true"]


def test_legend_has_the_area_of_each_class(segmented: "Page") -> None:
    counts = np.bincount(picture("scene").argmax(-1).ravel(), minlength=3)
    names = segmented.locator(".legend .bar-name").all_inner_texts()
    assert names == [["red", "green", "blue"][index] for index in np.argsort(-counts)]
    values = [float(text.removesuffix(" %")) for text in segmented.locator(".legend .bar-value").all_inner_texts()]
    assert values == [round(100 * count / counts.sum(), 1) for count in sorted(counts.tolist(), reverse=True)]


def test_class_and_confidence_are_under_the_pointer(segmented: "Page") -> None:
    box = segmented.locator(".stage").bounding_box()
    assert box is not None
    segmented.wait_for_selector(".segmentation[data-confidence]")
    pixels = picture("scene")
    height, width, _ = pixels.shape
    for row, column in ((3, 3), (40, 20), (5, 60)):
        segmented.mouse.move(
            box["x"] + box["width"] * (column + 0.5) / width, box["y"] + box["height"] * (row + 0.5) / height
        )
        name = ["red", "green", "blue"][pixels[row, column].argmax()]
        sure = f"{int(pixels[row, column].max()) / 2.55:.1f} % sure"
        assert segmented.inner_text(".readout") == f"x {column}, y {row}: {name}, {sure}"
    segmented.mouse.move(0, 0)
    assert segmented.inner_text(".readout").startswith("Point at the picture")


def test_arrow_keys_move_the_point(segmented: "Page") -> None:
    stage = segmented.locator(".stage")
    stage.focus()
    stage.press("Shift+ArrowRight")
    assert segmented.inner_text(".readout").startswith("x 33, y 24: ")
    stage.press("ArrowUp")
    assert segmented.inner_text(".readout").startswith("x 33, y 22: ")
    for _ in range(50):
        stage.press("ArrowLeft")
    assert segmented.inner_text(".readout").startswith("x 0, y 22: green")
    stage.press("Tab")
    assert not stage.evaluate("stage => stage === document.activeElement")


def test_mask_is_downloaded_as_a_palette_png(segmented: "Page", tmp_path: Path) -> None:
    with segmented.expect_download() as download:
        segmented.click("text=Download PNG")
    assert download.value.suggested_filename == "scene-mask.png"
    download.value.save_as(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        assert (image.getpalette() or [])[:9] == [200, 0, 0, 0, 200, 0, 0, 0, 200]
        assert (np.asarray(image) == picture("scene").argmax(-1)).all()


def test_network_without_confidence_is_asked_for_none(page: "Page") -> None:
    choose(page, "plain")
    assert not page.is_visible("#confidence")
    give(page, ("scene.png", encoded(picture("scene"))))
    answered(page)
    page.hover(".stage")
    assert "sure" not in page.inner_text(".readout")


def test_photo_lies_under_its_mask_as_it_was_taken(page: "Page") -> None:
    pixels = picture("turned", height=30, width=50)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    choose(page, "colours")
    give(page, ("photo.jpg", encoded(pixels, "JPEG", quality=95, exif=exif)))
    answered(page)
    assert mask_pixels(page).shape[:2] == (50, 30)
    # The card is there before its picture is decoded.
    shown = page.locator(".stage img").evaluate(
        "async image => { await image.decode(); return [image.naturalWidth, image.naturalHeight]; }"
    )
    assert shown == [30, 50]


def test_matching_shows_the_best_place_and_the_heat_map(page: "Page") -> None:
    pixels = np.full((40, 60, 3), 30, np.uint8)
    row, column = 12, 25
    pixels[row : row + networks.HEIGHT, column : column + networks.WIDTH] = 240
    choose(page, "window")
    give(page, ("scene.png", encoded(pixels)))
    answered(page)
    text = page.inner_text(".card .facts.column")
    assert f"x {column}, y {row}, width {networks.WIDTH}, height {networks.HEIGHT}" in text
    assert "0.941 of at most 1" in text
    mark = page.locator(".mark").evaluate("mark => ['left', 'top', 'width', 'height'].map((side) => mark.style[side])")
    assert [float(value.rstrip("%")) for value in mark] == pytest.approx(
        [100 * 25 / 60, 30, 100 * 10 / 60, 15], abs=0.01
    )
    heat = mask_pixels(page)[..., :3].sum(-1, dtype=int)
    assert np.unravel_index(heat.argmax(), heat.shape) == (row + networks.HEIGHT // 2, column + networks.WIDTH // 2)
    box = page.locator(".stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 30.5 / 60, box["y"] + box["height"] * 15.5 / 40)
    assert page.inner_text(".readout") == "x 30, y 15: 0.941"
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    assert page.inner_text(".readout") == "x 0, y 0: too near the border"
    page.keyboard.press("m")
    assert not page.is_visible(".stage canvas")
    assert "run" in page.inner_text(".times-legend")


def test_picture_smaller_than_the_template_is_refused_in_its_card(page: "Page") -> None:
    choose(page, "window")
    give(page, ("tiny.png", encoded(np.zeros((3, 3, 3), np.uint8))))
    answered(page)
    assert page.locator(".card[data-state=failed]").count() == 1


def test_model_of_tensors_takes_no_pictures(page: "Page") -> None:
    choose(page, "doubler")
    assert page.is_disabled("#choose")
    assert "It takes tensors, not pictures" in page.inner_text("#about")
    assert "/v2/models/doubler/infer" in page.inner_text("#call")
