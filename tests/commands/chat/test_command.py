"""`npu-gateway chat "QUESTION"` in this process, and a conversation as a process in a pseudo terminal."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway import cli
from gateway.commands.chat.command import chosen
from gateway.config.tables import ServerConfig
from gateway.errors import NotFound
from tests.support.server import Running, config_of, scripted, serving

KEY = "secret"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    models = {
        "paris": scripted("It is Paris.", repeat=True),
        "breaks": scripted("one two", faults=[{"error": "EngineFailed", "message": "It fell.", "after": 1}]),
        "broken": scripted(load_error="The file is damaged."),
        "escapes": scripted("\x1b]0;title\x07\x9b2J\tis"),
        "hangs": scripted("one two three", faults=[{"requests": [0], "after": 2, "stall_s": float("inf")}]),
    }
    with serving(config_of(models, ServerConfig(api_keys={"me": KEY}))) as running:
        yield running


@pytest.fixture
def chat(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "config.toml").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: bytes = b"", key: str = KEY) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = cli.main(["chat", "--url", server.url, "--api-key", key, *arguments])
        return code, *capsys.readouterr()

    return run


def test_question_prints_only_the_answer(chat: Callable[..., tuple[int, str, str]]) -> None:
    assert chat("What", "city?", "--max-tokens", "6") == (
        0,
        "It is Paris.It is Paris.\n",
        "npu-gateway: the answer was cut at 6 tokens; --max-tokens allows more\n",
    )


def test_terminal_obeys_no_answer(chat: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--model", "escapes", "Hello")
    assert chat(*arguments) == (0, "\x1b]0;title\x07\x9b2J\tis\n", "")  # a file gets the answer as it is
    monkeypatch.setattr("gateway.commands.chat.command._is_terminal", lambda stream: stream is sys.stdout)
    assert chat(*arguments) == (0, "\\x1b]0;title\\x07\\x9b2J\tis\n", "")


def test_question_on_standard_input_prints_only_the_answer(chat: Callable[..., tuple[int, str, str]]) -> None:
    code, output, errors = chat("--max-tokens", "3", stdin=b"/exit\n")
    assert (code, output) == (0, "It is Paris.\n") and len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "key", "line"),
    [
        ([], KEY, r'There is no question\. Write it behind the command: npu-gateway chat "QUESTION"'),
        (["hi", "--model", "pariss"], KEY, r"The gateway has no model 'pariss'; did you mean 'paris'\?"),
        (["hi"], "wrong", r"Incorrect API key provided\. Give the key with --api-key\."),
        (["hi", "--model", "broken"], KEY, r"broken could not be loaded: The file is damaged\. Try again in \d+ s\."),
    ],
)
def test_failure_exits_1_with_one_line_and_no_output(
    chat: Callable[..., tuple[int, str, str]], arguments: list[str], key: str, line: str
) -> None:
    code, output, errors = chat(*arguments, key=key)
    assert (code, output) == (1, "") and re.fullmatch(f"npu-gateway: {line}\n", errors)


def test_failure_in_the_middle_exits_1_after_the_text_so_far(chat: Callable[..., tuple[int, str, str]]) -> None:
    assert chat("hi", "--model", "breaks") == (1, "one", "npu-gateway: It fell.\n")


def test_limit_below_1_is_found_before_anything_is_sent(
    chat: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        chat("--max-tokens", "0", "hi")
    assert ended.value.code == 2 and "argument --max-tokens: 0 is less than 1" in capsys.readouterr().err


def test_chosen_model_is_the_named_or_default_or_first_ready_one() -> None:
    models = [{"id": "a", "state": "failed"}, {"id": "b", "state": "ready"}, {"id": "c"}]
    assert chosen(models, "a", "c") == "a" and chosen(models, "c:background", None) == "c:background"
    assert chosen(models, None, "c") == "c" and chosen(models, None, "gone") == "b"
    assert chosen(models[:1], None, None) == "a"
    assert chosen([*models[:1], {"id": "d", "state": "unloaded"}], None, None) == "d"
    with pytest.raises(NotFound, match="catalog"):
        chosen([], None, None)


@pytest.mark.slow  # seconds of processor time; test_interrupts.py has what once made one run in forty hang
@pytest.mark.skipif(sys.platform == "win32", reason="a console of Windows is no pseudo terminal")
def test_conversation_in_a_terminal(server: Running, tmp_path: Path) -> None:
    from tests.support.pseudo_terminal import pseudo_terminal

    readline = pytest.importorskip("readline")
    (tmp_path / "config.toml").write_text("", encoding="utf-8")
    arguments = ("chat", "--url", server.url, "--api-key", KEY, "--model", "hangs")
    with pseudo_terminal(*arguments, cwd=tmp_path, columns=50, NO_COLOR="1") as terminal:
        assert "hangs at" in terminal.read_until("> ")
        terminal.type("first question\n")
        terminal.read_until("one two")  # the third word never comes
        terminal.type_until("\x03", "stopped")
        terminal.read_until("> ")
        terminal.type("\x1b[A\n")  # arrow up
        assert "first question" in terminal.read_until("one two three")
        assert "tokens/s, " in terminal.read_until("> ")
        if "GNU" in readline.__doc__:
            assert "\x1b[?2004h" in terminal.output  # requests the marks around pasted text
            terminal.type("\x1b[200~pasted\n/lines\x1b[201~\n")  # as a terminal sends them
            terminal.read_until("one two three")
            terminal.read_until("> ")
        terminal.type("/modle\n")
        assert "There is no command '/modle'; did" in terminal.read_until("> ")
        assert terminal.wait(key="\x03") == 130
        assert terminal.output.endswith("\n") and terminal.output.count("There is no command") == 1
        assert "Traceback" not in terminal.output
        assert "\x1b[2m" not in terminal.output
