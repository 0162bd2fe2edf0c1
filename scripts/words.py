"""List banned words in the repository's text. CONTRIBUTING.md has the rule: plain technical English.

    python scripts/words.py [PATH...]

Reads every tracked .py, .md and .toml file and .ci/run. Lock files, the licence, the fuzz corpus and the calibration
text have other suffixes, so they are not read. Prints one line for each hit: file, line, word, plain words to use.
Standard library only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = (".py", ".md", ".toml", ".ci/run")
SKIPPED = {"scripts/words.py"}  # this table

#: pattern -> words to use instead
BANNED = {
    r"\b(told|tells?)\b": "reports, says, sends",
    r"\bcompany\b|\bbeside\b": "batch, padding row, next to",
    r"\bso many\b|\bso much\b": "n, the number of",
    r"\bstands?\b|\bstood\b": "is, position",
    r"(?<!in )(?<!take )(?<!takes )\bplaces?\b": "position, slot",  # "in place" is a standard term
    r"\b(in|joins?|joined|joining|of|before|leaves?) (the|a) line\b|\bwaiting line\b": "queue",
    r"\b(whoever|nobody|somebody|anybody|everybody)\b": "the caller, no client, every client",
    r"\bsuch\b(?! as)": "these, this",
    r"\bsaid\b": "(noun) message, (verb) sent, reported",
    r"\basked\b": "requested, sent",
    r"\b(a|its|the|by|with|without) leave\b": "permission",
    r"\brooms?\b": "capacity, space",
    r"\bdoors?\b": "API, endpoint family",
}
_PATTERNS = [(re.compile(pattern, re.IGNORECASE), plain) for pattern, plain in BANNED.items()]


def hits(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, banned word, plain words."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, plain in _PATTERNS:
            for found in pattern.finditer(line):
                yield number, found[0], plain


def files(paths: list[str]) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", "--", *paths], cwd=ROOT, capture_output=True, check=True)
    names = listed.stdout.decode().split("\0")
    return [name for name in names if name.endswith(SUFFIXES) and name not in SKIPPED and (ROOT / name).is_file()]


def main() -> int:
    found = 0
    for name in files(sys.argv[1:]):
        for number, word, plain in hits((ROOT / name).read_text(encoding="utf-8")):
            found += 1
            print(f"{name}:{number}: '{word}' is banned; use: {plain}")
    print(f"{found} banned words")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
