"""What tests of both packages use: the two networks, trained and exported once."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trained_repository() -> Path:
    """A model repository with `lenet5` and `unet`, trained with the defaults. A second run of the tests finds it done,
    unless the source that decides on it has changed."""
    from models import demo

    return demo.prepare(Path(__file__).parent.parent / ".cache" / "trained")
