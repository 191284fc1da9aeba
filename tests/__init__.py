"""Tests of Convoy."""

import convoy.models  # noqa: F401  before torch, for the waiting of its threads
