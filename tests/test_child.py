"""Work in a child process."""

from __future__ import annotations

import msgspec
import pytest

from gateway.child import run_in_child
from gateway.errors import BundleError


class _Empty(msgspec.Struct):
    pass


def test_crash_of_child_names_the_work() -> None:
    with pytest.raises(BundleError, match="worked on the graph crashed"):
        run_in_child("gateway.no_such_module", _Empty(), "the graph")
