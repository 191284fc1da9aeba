"""Options that several commands take, from text to values."""

import re

from models.errors import BadTraining

MAX_SIDE = 65_535


def assignments(texts: list[str]) -> dict[str, str]:
    """`NAME=VALUE` texts by name. Raises BadTraining."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, sign, _) in zip(texts, pairs, strict=True):
        if not (name and sign):
            raise BadTraining(f"--set {text!r}, want NAME=VALUE")
    return {name: value for name, _, value in pairs}


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `HxW`, or of one number for both. Raises BadTraining."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise BadTraining(f"--size {text!r}, want HEIGHTxWIDTH such as 224x224, each 1 to {MAX_SIDE}")
    return sides
