"""Class colours in pictures of masks: one palette for the server, the commands and the training reports."""

MAX_CLASSES = 256  # a class index is 8 bits


def default_palette(classes: int) -> list[tuple[int, int, int]]:
    """(red, green, blue) of each class of a model without a palette: the colours of Pascal VOC, class 0 black.

    The bits of the index go to red, green and blue in turn, from the lowest to the highest, and fill each channel from
    its highest bit down. So any two of 256 classes differ, and neighbours differ clearly.
    """
    assert classes <= MAX_CLASSES
    return [(_channel(index), _channel(index >> 1), _channel(index >> 2)) for index in range(classes)]


def _channel(index: int) -> int:
    # Bits 0, 3 and 6 become bits 7, 6 and 5.
    return (index & 1) << 7 | (index >> 3 & 1) << 6 | (index >> 6 & 1) << 5
