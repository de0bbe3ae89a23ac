"""Independent implementations to compare with: the `peers` extra."""

import importlib
import os

import pytest


def peer(name):
    """A module of the extra; without it the test is skipped, but never in CI."""
    return importlib.import_module(name) if os.environ.get("CI") else pytest.importorskip(name)
