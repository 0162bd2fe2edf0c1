"""A conversation in a terminal: reads lines, shows answers, executes the commands that begin with `/`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

from gateway.commands.chat import slash
from gateway.commands.chat.conversation import Answer, Conversation, for_terminal
from gateway.commands.chat.interrupts import repeat_interrupts
from gateway.errors import GatewayError
from gateway.monitoring.output import escape

_PROMPT, _MORE = "> ", ". "
_QUOTES = '"""'


class Terminal:
    """The loop of a conversation.

    Args:
        models: the names that `/model` accepts.
        url: of the gateway, for the first line.
        read_line: the line that the user types after a prompt. Raises EOFError at the end of the input.
    """

    def __init__(
        self,
        conversation: Conversation,
        models: Sequence[str],
        url: str,
        read_line: Callable[[str], str] | None = None,
    ) -> None:
        from rich.console import Console

        self._conversation = conversation
        self._models = models
        self._url = url
        self._read_line = read_line or line_editor()
        self._console = Console(highlight=False, emoji=False, markup=False)
        self._dim = "" if self._console.no_color else "dim"

    def run(self) -> int:
        """Returns 0 at the end of the input or after `/exit`, 130 after Ctrl-C at the prompt."""
        limit = f"Answers end after {self._conversation.max_tokens} tokens."
        self._say(f"{self._conversation.model} at {self._url}. {limit} /help: commands, Ctrl-D: end.")
        while True:
            try:
                line = self._question()
            except EOFError:
                self._console.print()
                return 0
            except KeyboardInterrupt:
                self._console.print()
                return 130
            if slash.is_command(line):
                lines = slash.execute(line, self._conversation, self._models)
                if lines is None:
                    return 0
                for text in lines:
                    self._say(text)
            elif line.strip():
                self._answer(line.strip())

    def _question(self) -> str:
        """One line, or the lines between two that are three quotation marks. Raises EOFError, KeyboardInterrupt."""
        line = self._read_line(_PROMPT)
        if not line.strip().startswith(_QUOTES):
            return line
        text = line.strip().removeprefix(_QUOTES)
        while not text.rstrip().endswith(_QUOTES):
            text += "\n" + self._read_line(_MORE)
        return " " + text.rstrip().removesuffix(_QUOTES)  # with a space: never a command

    def _answer(self, question: str) -> None:
        answer, shown = Answer(), ""
        try:
            with closing(self._conversation.ask(question, answer)) as pieces:
                for piece in pieces:
                    if shown and shown != piece.kind:
                        self._console.print()
                    shown = piece.kind
                    self._show(piece.text, self._dim if piece.kind == "reasoning" else "")
        except KeyboardInterrupt:
            answer.note = "stopped"
        except GatewayError as error:
            answer.note = error.message
        if shown:
            self._console.print()
        for text in filter(None, (answer.figures, answer.note)):
            self._say(text)

    def _show(self, text: str, style: str) -> None:
        self._console.out(for_terminal(text), end="", style=style or None)
        self._console.file.flush()

    def _say(self, text: str) -> None:
        self._console.print(escape(text), style=self._dim or None)


def line_editor() -> Callable[[str], str]:
    """`input`, with the history of readline where Python has it; a console of Windows has its own."""
    if sys.platform != "win32":
        with suppress(ImportError):
            import readline  # importing it is what changes `input`

            if "GNU" in (readline.__doc__ or ""):
                readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one question
                repeat_interrupts()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    return input
