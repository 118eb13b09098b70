"""Hosts are imported once, and where they are missing the tests that need them are skipped with that reason."""

import os
import sys
from unittest import mock

import pytest


def _import(name: str) -> str | None:
    """None, or why the host cannot be used."""
    try:
        # mobile_cv asks for stdin's file descriptor when it is imported, which pytest's stand-in does not have.
        with open(os.devnull) as null, mock.patch.object(sys, "stdin", null):
            __import__(name)
    except ImportError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def detectron2():
    reason = _import("detectron2.modeling")
    if reason:
        pytest.skip(f"Detectron2 is not installed (it is not on PyPI): {reason}")


@pytest.fixture(scope="session")
def d2go(detectron2):
    reason = _import("d2go.runner")
    if reason:
        pytest.skip(f"D2Go is not installed (it is not on PyPI): {reason}")
