"""`aerial`: generated aerial images of roads, a river, houses, fields and trees, with the class of every pixel.

An image depends only on its split and index, so any of them can be made again. Colour alone does not determine the
class: some crops are as green as grass and trees, some roofs as grey as asphalt, some roads as brown as soil.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from convoy.models.data.builtin.generated import CachedSplit
from convoy.models.data.dataset import DataSet, SplitName

SEED = 1858  # the year of the first photograph from a balloon
COUNTS: dict[SplitName, int] = {"train": 240, "validation": 24, "test": 48}
SIZES = ((256, 256), (256, 320), (320, 256), (275, 341))  # height and width, in rotation
GRASS, ROAD, RIVER, HOUSE, FIELD, TREE = range(6)
LABELS = ["grass", "road", "river", "house", "field", "tree"]
PALETTE = [(124, 179, 66), (97, 97, 97), (30, 136, 229), (216, 67, 21), (253, 216, 53), (27, 94, 32)]

Points = NDArray[np.float64]  # (points, 2): x and y in pixels
Colour = tuple[int, int, int]

CROPS: tuple[Colour, ...] = ((196, 174, 102), (138, 152, 74), (104, 128, 66), (140, 108, 76), (168, 148, 110))
ROOFS: tuple[Colour, ...] = ((152, 84, 66), (128, 66, 56), (120, 118, 116), (92, 96, 104), (170, 140, 116))
SURFACES: tuple[Colour, ...] = ((128, 128, 128), (108, 110, 114), (156, 138, 110))  # asphalt twice, gravel
WATERS: tuple[Colour, ...] = ((66, 98, 110), (80, 106, 92), (54, 78, 98))
LEAVES: tuple[Colour, ...] = ((56, 84, 44), (68, 96, 48), (48, 74, 50), (84, 100, 50))


def load() -> DataSet:
    """Returns colour images of four sizes with six classes: grass, and what lies on it."""
    return DataSet(
        name="aerial",
        task="segmentation",
        colour="RGB",
        labels=LABELS,
        palette=PALETTE,
        mean=[0.48, 0.50, 0.32],
        std=[0.15, 0.12, 0.11],
        split=_split,
    )


def draw(split: SplitName, index: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the image (H, W, 3) RGB of a split and an index, of height and width `size`, and the class of each pixel
    (H, W); deterministic."""
    random = np.random.default_rng((SEED, list(COUNTS).index(split), index))
    land = Land(random, size)
    land.fields()
    land.river()
    roads = [land.road() for _ in range(random.integers(1, 4))]
    for road in roads:
        land.houses(road)
    land.trees()
    return land.photograph()


class Land:
    """An unfinished image. What is drawn covers what was there before, in the image and in the mask."""

    def __init__(self, random: np.random.Generator, size: tuple[int, int]) -> None:
        self.random = random
        self.height, self.width = size
        base = np.asarray(_vary(random, (116, 136, 72), 14), np.float32)
        ground = base + _noise(random, size, ((48, 12.0), (10, 7.0), (3, 6.0)))[..., None]
        self.image = Image.fromarray(_bytes(ground))
        self.plan = Image.new("L", (self.width, self.height), GRASS)
        self.light = random.uniform(0, 2 * math.pi)  # direction in which shadows fall

    def fields(self) -> None:
        """Draws parcels of a rotated, recursively divided grid; some remain grass."""
        angle = self.random.uniform(0, math.pi)
        reach = math.hypot(self.height, self.width) / 2
        for parcel in _parcels(self.random, (-reach, -reach, reach, reach)):
            if self.random.random() < 0.55:
                self._field(self._placed(_rectangle(*parcel, margin=self.random.uniform(2, 6)), angle), angle)

    def river(self) -> None:
        """Draws a winding river of varying width across the image, with a bank of sand and reed; or none."""
        if self.random.random() < 0.2:
            return
        line = self._across(bend=0.22)
        widths = self.random.uniform(9, 20) * (1 + 0.3 * np.sin(np.linspace(0, self.random.uniform(3, 9), len(line))))
        water = _vary(self.random, WATERS[self.random.integers(len(WATERS))], 8)
        bank = _vary(self.random, (150, 140, 104), 10)
        self._along(line, widths / 2 + self.random.uniform(2, 4), bank, GRASS)
        self._along(line, widths / 2, water, RIVER)

    def road(self) -> Points:
        """Draws a road from side to side, also over the river; asphalt has a dashed centre line. Returns its path."""
        line = self._across(bend=0.07)
        surface = SURFACES[self.random.integers(len(SURFACES))]
        half = self.random.uniform(3.0, 5.5)
        self._along(line, np.full(len(line), half + 1.5), _vary(self.random, (148, 142, 112), 8), GRASS)
        self._along(line, np.full(len(line), half), _vary(self.random, surface, 8), ROAD)
        if surface[0] == surface[1]:
            pen = ImageDraw.Draw(self.image)
            for start in range(0, len(line) - 4, 9):
                pen.line([tuple(point) for point in line[start : start + 4]], fill=(212, 210, 204))
        return line

    def houses(self, road: Points) -> None:
        """Draws houses along both sides of a road, parallel to it; none in water, on a road or on another house."""
        for _ in range(self.random.integers(8, 20)):
            spot = int(self.random.integers(1, len(road) - 1))
            ahead = road[spot + 1] - road[spot - 1]
            across = np.array([-ahead[1], ahead[0]]) / max(1e-6, float(np.hypot(*ahead)))
            centre = road[spot] + across * self.random.choice([-1, 1]) * self.random.uniform(18, 36)
            turn = math.atan2(ahead[1], ahead[0]) + self.random.normal(0, 0.06)
            self._house(centre, turn, self.random.uniform(9, 16), self.random.uniform(6, 9))

    def trees(self) -> None:
        """Draws woods, rows and single trees on grass and fields."""
        for _ in range(self.random.integers(5, 12)):
            centre = self.random.uniform((0, 0), (self.width, self.height))
            spread = self.random.uniform(3, 26)
            leaf = LEAVES[self.random.integers(len(LEAVES))]
            for _ in range(max(1, round(spread * self.random.uniform(0.4, 1.3)))):
                self._tree(self.random.normal(centre, spread), self.random.uniform(4, 8.5), _vary(self.random, leaf, 8))

    def photograph(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Returns the image as a camera records it, with haze, uneven light, a soft lens and noise; and the mask."""
        soft = np.asarray(self.image.filter(ImageFilter.GaussianBlur(0.7)), np.float32)
        light = 1 + _noise(self.random, (self.height, self.width), ((120, 0.07),))[..., None]
        pixels = (soft * light - 110) * self.random.uniform(0.8, 1.15) + 110 + self.random.uniform(-18, 18)
        pixels = pixels + self.random.normal(0, 6, 3) + self.random.normal(0, 5, pixels.shape)
        return _bytes(pixels), np.array(self.plan)

    def _across(self, bend: float) -> Points:
        """Returns a line of points about one pixel apart, from beyond one side of the image to beyond the opposite
        side."""
        angle = self.random.uniform(0, 2 * math.pi)
        reach = math.hypot(self.height, self.width) * 0.6
        knots = self.random.normal(0, bend * reach, 6)
        knots += self.random.uniform(-0.5, 0.5) * reach
        along = np.linspace(-reach, reach, round(2 * reach))
        # Straight segments, smoothed with a wide window.
        aside = _smooth(np.interp(along, np.linspace(-reach, reach, len(knots)), knots), round(0.35 * reach))
        return self._placed(np.stack([along, aside], axis=1), angle)

    def _placed(self, points: Points, angle: float) -> Points:
        """Rotates points about the origin and moves them to the centre of the image."""
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        placed: Points = points @ turn + np.array([self.width / 2, self.height / 2])
        return placed

    def _field(self, corners: Points, angle: float) -> None:
        if not _meets(corners, self.plan.size):
            return
        corner, inside = _stencil(corners, fill=255)
        crop = np.asarray(_vary(self.random, CROPS[self.random.integers(len(CROPS))], 12), np.float32)
        # Furrows run along one side of the parcel.
        along = angle + self.random.choice([0, math.pi / 2])
        y, x = np.mgrid[: inside.height, : inside.width].astype(np.float32)
        furrows = np.sin((x * math.sin(along) - y * math.cos(along)) * 2 * math.pi / self.random.uniform(3.5, 8))
        texture = self.random.uniform(6, 12) * furrows + _noise(self.random, inside.size[::-1], ((30, 5.0), (4, 4.0)))
        self.image.paste(Image.fromarray(_bytes(crop + texture[..., None])), corner, inside)
        self.plan.paste(FIELD, (*corner, corner[0] + inside.width, corner[1] + inside.height), inside)

    def _along(self, line: Points, halves: NDArray[np.float64], colour: Colour, name: int) -> None:
        shape = Image.new("L", self.plan.size)
        pen = ImageDraw.Draw(shape)
        for (x, y), half in zip(line[::2], halves[::2], strict=True):
            pen.ellipse((x - half, y - half, x + half, y + half), fill=255)
        grain = _noise(self.random, self.plan.size[::-1], ((14, 4.0), (3, 3.0)))[..., None]
        self.image.paste(Image.fromarray(_bytes(np.asarray(colour, np.float32) + grain)), mask=shape)
        self.plan.paste(name, mask=shape)

    def _house(self, centre: Points, turn: float, length: float, depth: float) -> None:
        outline = _turned(_rectangle(-length, -depth, length, depth, margin=0), turn) + centre
        if not self._free(_turned(_rectangle(-length, -depth, length, depth, margin=-2), turn) + centre):
            return
        roof = _vary(self.random, ROOFS[self.random.integers(len(ROOFS))], 14)
        self._shadow(outline, self.random.uniform(4, 8))
        pen = ImageDraw.Draw(self.image)
        # The ridge runs along the house. The side that faces the light, away from the shadow, is brighter.
        dark = 1 if math.cos(self.light - turn - math.pi / 2) > 0 else -1
        for side, shade in ((-dark, 1.15), (dark, 0.75)):
            half = _turned(_rectangle(-length, min(0, side * depth), length, max(0, side * depth), margin=0), turn)
            pen.polygon([tuple(point) for point in half + centre], fill=_shaded(roof, shade))
        ImageDraw.Draw(self.plan).polygon([tuple(point) for point in outline], fill=HOUSE)

    def _tree(self, centre: Points, radius: float, leaf: Colour) -> None:
        (left, top), (right, bottom) = centre - 0.8 * radius, centre + 0.8 * radius
        if not self._free(_rectangle(left, top, right, bottom, margin=0)):
            return
        circle = np.linspace(0, 2 * math.pi, 14)
        crown = centre + radius * np.stack([np.cos(circle), np.sin(circle)], axis=1)
        crown += self.random.normal(0, 0.12 * radius, crown.shape)
        self._shadow(crown, 0.8 * radius)
        pen = ImageDraw.Draw(self.image)
        pen.polygon([tuple(point) for point in crown], fill=_shaded(leaf, 0.8))
        bright = centre - 0.25 * radius * np.array([math.cos(self.light), math.sin(self.light)])
        for share, shade in ((0.7, 1.0), (0.4, 1.2)):
            pen.polygon([tuple(point) for point in bright + share * (crown - centre)], fill=_shaded(leaf, shade))
        ImageDraw.Draw(self.plan).polygon([tuple(point) for point in crown], fill=TREE)

    def _shadow(self, outline: Points, reach: float) -> None:
        """Darkens an area without changing its class."""
        fall = outline + reach * np.array([math.cos(self.light), math.sin(self.light)])
        corner, shade = _stencil(fall, fill=115)
        self.image.paste((24, 28, 40), corner, shade)

    def _free(self, corners: Points) -> bool:
        """Returns whether a few points of a shape are on grass, field or trees only."""
        points = [*corners, *((corners + corners[np.arange(-1, len(corners) - 1)]) / 2), corners.mean(axis=0)]
        inside = [(int(x), int(y)) for x, y in points if 0 <= x < self.width and 0 <= y < self.height]
        return bool(inside) and all(self.plan.getpixel(point) in (GRASS, FIELD, TREE) for point in inside)


@cache
def _split(name: SplitName) -> CachedSplit:
    """Returns a split of 0.3 MB per image."""
    sizes = [SIZES[index % len(SIZES)] for index in range(COUNTS[name])]
    return CachedSplit(sizes, lambda index: draw(name, index, sizes[index]))


def _parcels(
    random: np.random.Generator, area: tuple[float, float, float, float]
) -> list[tuple[float, float, float, float]]:
    left, top, right, bottom = area
    wide, high = right - left, bottom - top
    if max(wide, high) < 150 and (max(wide, high) < 60 or random.random() < 0.35):
        return [area]
    cut = random.uniform(0.35, 0.65)
    if wide > high:
        middle = left + cut * wide
        return _parcels(random, (left, top, middle, bottom)) + _parcels(random, (middle, top, right, bottom))
    middle = top + cut * high
    return _parcels(random, (left, top, right, middle)) + _parcels(random, (left, middle, right, bottom))


def _rectangle(left: float, top: float, right: float, bottom: float, margin: float) -> Points:
    left, top, right, bottom = left + margin, top + margin, right - margin, bottom - margin
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)


def _stencil(outline: Points, fill: int) -> tuple[tuple[int, int], Image.Image]:
    """Returns a grey image that just fits a polygon, with `fill` inside it, and the position of its upper left
    corner."""
    left, top = (math.floor(side) for side in outline.min(axis=0))
    right, bottom = (math.ceil(side) + 1 for side in outline.max(axis=0))
    shape = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(shape).polygon([tuple(point) for point in outline - (left, top)], fill=fill)
    return (left, top), shape


def _meets(outline: Points, size: tuple[int, int]) -> bool:
    return bool((outline.max(axis=0) > 0).all() and (outline.min(axis=0) < size).all())


def _turned(points: Points, angle: float) -> Points:
    turned: Points = points @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return turned


def _smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    padded = np.pad(values, width, mode="edge")
    window = np.hanning(2 * width + 1)
    return np.convolve(padded, window / window.sum(), mode="valid")


def _noise(
    random: np.random.Generator, size: tuple[int, int], scales: tuple[tuple[int, float], ...]
) -> NDArray[np.float32]:
    """Returns smooth noise (H, W), the sum of several scales: (pixels per cell, standard deviation)."""
    total = np.zeros(size, np.float32)
    for cell, deviation in scales:
        coarse = random.normal(0, deviation, (size[0] // cell + 2, size[1] // cell + 2)).astype(np.float32)
        total += np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
    return total


def _vary(random: np.random.Generator, colour: Colour, deviation: float) -> Colour:
    common = random.normal(0, deviation)
    red, green, blue = (round(min(255.0, max(0.0, c + common + random.normal(0, deviation / 3)))) for c in colour)
    return red, green, blue


def _shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(c * factor)) for c in colour)
    return red, green, blue


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    clipped: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return clipped
