"""`python -m tests.commands.crash` ends like a process whose driver crashes."""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.abort()
