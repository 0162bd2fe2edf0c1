"""Stands in for a module whose driver is broken: `python -m tests.commands.crash` ends as a crash does."""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.abort()
