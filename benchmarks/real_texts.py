"""Pairs of a request and its answer in real text, by kind: from this repository, and a translation made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

from report import ROOT


def pairs() -> dict[str, tuple[str, str]]:
    """Kind -> request and answer."""
    return {
        "chat": _chat(),
        "code edit": _code_edit(),
        "JSON from a table": _json(),
        "quotations": _quotations(),
        "translation": (f"Translate into German:\n\n{ENGLISH}", GERMAN),
    }


def _chat() -> tuple[str, str]:
    answer = _section("docs/tune.md", "## Fast, or refused").split("```")[0]
    return "What happens if my laptop is too slow for the requests that it gets, and what can I do about it?", answer


def _code_edit() -> tuple[str, str]:
    code = _read("gateway/worker/memory.py").partition("    import resource\n")[2]
    code = f"import resource\n{code}" + _read("gateway/bundles/kv_cache/common_prefix.py").partition("\n\n\n")[2]
    edited = re.sub(r"\bpeak\b", "most", code).replace("peak_bytes", "most_bytes").replace("if it does", "if this does")
    request = "Rename `peak` to `most` everywhere. Answer with the whole file."
    return f"```python\n{code}```\n{request}", f"```python\n{edited}```"


def _json() -> tuple[str, str]:
    rows = re.findall(r"^\| `(gateway_\w+)` \| (\w+) \| ([\w, ]*) \| (.*) \|$", _read("docs/metrics.md"), re.MULTILINE)[
        :7
    ]
    keys = ("name", "type", "labels", "meaning")
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    answer = json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=1)
    return f"{table}\n\nWrite this table as JSON with the keys {', '.join(keys)}.", answer


def _quotations() -> tuple[str, str]:
    text = _read("LICENSE")
    grant, marks = (
        " ".join(text[text.index(start) : text.index(end)].split())
        for start, end in (("2. Grant of Copyright", "3. Grant of Patent"), ("6. Trademarks", "7. Disclaimer"))
    )
    answer = (
        f'Two sections answer this. On copies, section 2 says: "{grant[31:]}" So you may change and sell it. But you '
        f'may not use its name for that. Section 6 says: "{marks[15:]}" The licence says nothing else about names.'
    )
    return f"{grant}\n\n{marks}\n\nMay I sell a changed copy under the same name? Quote the licence.", answer


def _section(page: str, heading: str) -> str:
    return _read(page).partition(f"{heading}\n\n")[2].partition("\n## ")[0]


def _read(path: str) -> str:
    return Path(ROOT, path).read_text(encoding="utf-8")


ENGLISH = """\
The ferry leaves the small harbour at half past six. In winter it carries only the post, a few boxes of bread and two or
three people who work on the mainland. The captain knows all of them by name. When the wind is strong, he waits for an
hour, drinks tea in the kitchen of the old inn and looks at the clouds. He says that the sea is like a large animal: you
cannot command it, but you can learn its habits. On the way back he switches the engine off for a minute, so that the
passengers can hear the seals on the sandbank."""
GERMAN = """\
Die Fähre verlässt den kleinen Hafen um halb sieben. Im Winter bringt sie nur die Post, ein paar Kisten Brot und zwei
oder drei Leute, die auf dem Festland arbeiten. Der Kapitän kennt sie alle beim Namen. Bei starkem Wind wartet er eine
Stunde, trinkt Tee in der Küche des alten Gasthofs und sieht in die Wolken. Er sagt, das Meer sei wie ein großes Tier:
Man kann ihm nichts befehlen, aber man kann seine Gewohnheiten lernen. Auf dem Rückweg stellt er für eine Minute den
Motor ab, damit die Fahrgäste die Robben auf der Sandbank hören."""
