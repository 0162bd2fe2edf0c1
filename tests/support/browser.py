"""Headless Chromium, driven by scripts of Playwright in one Node process, for the tests of the page."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from scripts.chromium import LEFT_OUT, find
from tests.support import npm

RUN_S = 300.0  # for one script, on a machine with other work


class Seen(Struct):
    """What a script returned, and what the browser did meanwhile."""

    value: Any
    requests: list[str]  # the URLs, also of blocked ones
    errors: list[str]  # of the console, of scripts, and violations of the content security policy


class Browser:
    """Runs exported functions of .mjs files, each with a page in its own context: own storage and cache."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, script: str, url: str, args: Any = None, **context: Any) -> Seen:
        """Call `script`, "FILE.FUNCTION", with (page, url, args, context). `context`: options of Playwright."""
        file, name = script.split(".")
        answer = self._exchange({"file": file, "name": name, "url": url, "args": args, "context": context})
        assert "failure" not in answer, f"{script}: {answer['failure']}\n{answer['errors']}"
        return Seen(answer["value"], answer["requests"], answer["errors"])

    def _exchange(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(RUN_S, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        assert line, f"the browser ended in {command['file']}.{command['name']}"
        return dict(json.loads(line))


@contextmanager
def browser(source: Path, names: Sequence[str], folder: Path) -> Iterator[Browser]:
    """A browser with the scripts `names` of `source`, among them driver.mjs, in `folder`.

    Skips if there is no Chromium, no Node, or no registry for the packages.
    """
    if (chromium := find()) is None:
        pytest.skip(f"Chromium is not installed: {LEFT_OUT}")
    npm.install(source, ["package.json", "package-lock.json", *names], folder, "ci")
    command = ["node", "driver.mjs", chromium]
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline(), "the browser does not start"
            yield Browser(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
