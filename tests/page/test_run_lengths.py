"""COCO's compressed run lengths, read in the browser exactly as pycocotools reads them."""

from base64 import b64decode
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pycocotools import mask as coco

if TYPE_CHECKING:
    from playwright.sync_api import Page

RUNS = "async (texts) => { const { runs } = await import('/page/rle.js'); return texts.map(runs); }"
MASK = """async ([height, width, classes]) => {
    const { mask } = await import('/page/rle.js');
    const pixels = mask(height, width, classes);
    let text = "";
    for (let place = 0; place < pixels.length; place += 8192) {
        text += String.fromCharCode(...pixels.subarray(place, place + 8192));
    }
    return btoa(text); // a list of numbers takes seconds to come here
}"""


def decoded(page: "Page", classes: np.ndarray) -> np.ndarray:
    """A mask that has been through pycocotools and the page."""
    lengths = [
        {"class_index": int(index), "counts": coco.encode(np.asfortranarray(classes == index))["counts"].decode()}
        for index in np.unique(classes)
    ]
    pixels = b64decode(page.evaluate(MASK, [*classes.shape, lengths]))
    return np.frombuffer(pixels, np.uint8).reshape(classes.shape)


def test_masks_are_as_they_were(page: "Page") -> None:
    rng = np.random.default_rng(1)
    shapes = [(1, 1), (1, 40), (40, 1), (7, 5), (33, 64), (100, 3)]
    masks = [rng.integers(0, classes, shape, np.uint8) for shape in shapes for classes in (1, 2, 5)]
    masks.append(np.repeat(np.repeat(rng.integers(0, 256, (30, 40), np.uint8), 8, axis=0), 9, axis=1))
    large = np.zeros((700, 900), np.uint8)
    large[50:600, 100:101] = 3
    large[650:, 800:] = 255
    for mask in [*masks, large]:
        assert (decoded(page, mask) == mask).all()


def test_runs_of_every_length_are_exact(page: "Page") -> None:
    rng = np.random.default_rng(2)
    lists = [[0, 1], [5], [1, 0, 2, 3]]
    for _ in range(200):
        lists.append(np.floor(2 ** rng.uniform(0, 27, rng.integers(1, 24))).astype(int).tolist())
    lists.append([2**31, 1, 2**30, 3, 2**29, 2**31 - 1, 7])
    texts = []
    for counts in lists:
        width = 65_536
        height = -(-sum(counts) // width)
        texts.append(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"].decode())
    assert page.evaluate(RUNS, texts) == lists


def test_broken_run_lengths_are_an_error(page: "Page") -> None:
    for counts in ("o", "0 ", "~", "000"):
        classes: list[Any] = [{"class_index": 1, "counts": counts}]
        with pytest.raises(Exception, match="run lengths"):
            page.evaluate(MASK, [2, 2, classes])
