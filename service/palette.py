"""The colours of classes in pictures of masks: one palette for the server, the commands and the training reports."""

MAX_CLASSES = 256  # an index of 8 bits


def default_palette(classes: int) -> list[tuple[int, int, int]]:
    """(red, green, blue) of each class where a model has no palette: the colours of Pascal VOC, class 0 black.

    The bits of the index go to red, green and blue in turn, the lowest ones to the highest bits, so any two of 256
    classes differ and neighbours differ much.
    """
    assert classes <= MAX_CLASSES
    return [(_channel(index), _channel(index >> 1), _channel(index >> 2)) for index in range(classes)]


def _channel(index: int) -> int:
    # Bits 0, 3 and 6 become bits 7, 6 and 5.
    return (index & 1) << 7 | (index >> 3 & 1) << 6 | (index >> 6 & 1) << 5
