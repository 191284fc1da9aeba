"""One picture of a server's answers: a scene, its mask laid over it, and digits with their ranked labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import convoy
from convoy.service.commands.picture import palette_of
from convoy.service.images.overlay import overlay

SCALE = 3  # of the scene
DIGITS = 3
DIGIT_SIDE = 108  # pixels
LABELS = 3  # per digit
BAR_WIDTH = 120  # pixels, of probability 1
GAP, TITLE_HEIGHT = 16, 24  # pixels
INK, PALE, BLUE = (30, 32, 40), (226, 230, 240), (66, 99, 216)


def draw(target: str, pictures: Sequence[Path], file: Path) -> None:
    """Asks the server at `target`, which serves lenet5 and unet, about the first scene and the first digits among the
    pictures, by their names, and writes the PNG file."""
    scene = next(path for path in pictures if path.name.startswith("scene-"))
    digits = [path for path in pictures if path.name.startswith("digit-")][:DIGITS]
    with convoy.Client(target) as client:
        segmented = client.segment(scene, model="unet")
        ranked = [client.classify(path, model="lenet5", top_k=LABELS).labels for path in digits]
        served = [one for one in client.models() if (one.model, one.version) == ("unet", segmented.version)]
    pixels = np.asarray(Image.open(scene).convert("RGB"))
    palette = palette_of(served[0].palette if served else (), len(segmented.class_pixels))
    blended = overlay(pixels, segmented.mask, palette)

    height, width = (SCALE * side for side in pixels.shape[:2])
    columns = [GAP, 2 * GAP + width, 3 * GAP + 2 * width]
    rows = [TITLE_HEIGHT + GAP // 2 + place * (DIGIT_SIDE + GAP // 2) for place in range(DIGITS + 1)]
    total_height = max(rows[0] + height, rows[-1]) + GAP // 2
    sheet = Image.new("RGB", (columns[2] + DIGIT_SIDE + GAP + 24 + BAR_WIDTH + 64, total_height), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for left, title in zip(
        columns, ("a scene", "its mask, laid over it", "digits and their ranked labels"), strict=True
    ):
        canvas.text((left, GAP // 2), title, fill=INK, font=font)
    for left, image in zip(columns, (pixels, blended), strict=False):
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, rows[0]))
    for top, path, labels in zip(rows, digits, ranked, strict=False):
        sheet.paste(Image.open(path).convert("RGB").resize((DIGIT_SIDE, DIGIT_SIDE)), (columns[2], top))
        for place, label in enumerate(labels):
            left, line = columns[2] + DIGIT_SIDE + GAP, top + 8 + place * 32
            canvas.text((left, line + 2), label.name, fill=INK, font=font)
            left += 24
            canvas.rectangle((left, line, left + BAR_WIDTH, line + 22), fill=PALE)
            canvas.rectangle((left, line, left + round(BAR_WIDTH * label.probability), line + 22), fill=BLUE)
            canvas.text((left + BAR_WIDTH + 8, line + 2), f"{label.probability:.1%}", fill=INK, font=font)
    sheet.save(file)
