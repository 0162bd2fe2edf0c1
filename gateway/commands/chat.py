"""`npu-gateway chat`: a conversation in the terminal with a gateway that is running."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from gateway.commands import options
from gateway.commands.client import gateway_error, openai_client
from gateway.commands.running.find import find_gateway

if TYPE_CHECKING:
    from openai import OpenAI
    from rich.console import Console

HELP = "/new starts a new conversation, /exit or Ctrl-D ends. Ctrl-C stops an answer."


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "chat", help="talk to a running gateway", description=f"Talk to a running gateway. {HELP}"
    )
    options.add_config(parser)
    parser.add_argument("--url", help="the gateway (default: the one that runs)")
    parser.add_argument("--api-key", help="key to send (default: the first one in the gateway's configuration)")
    parser.add_argument("--model", help="model or alias (default: the first model of the gateway)")
    parser.add_argument("--system", metavar="TEXT", help="instructions for the whole conversation")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest answer, in tokens (default: 512)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from openai import APIError
    from rich.console import Console

    found = find_gateway(arguments, options.load(arguments, may_be_empty=True))
    url = found.api_url
    console = Console(highlight=False)
    with openai_client(url, found.key) as client:
        try:
            model = arguments.model or client.models.list().data[0].id
            console.print(f"[dim]{model} at {url}. {HELP}[/dim]")
            Conversation(client, model, arguments.system, arguments.max_tokens, console).run()
        except APIError as error:
            raise gateway_error(error) from None
    return 0


class Conversation:
    """The messages so far, and the loop that adds to them."""

    def __init__(self, client: OpenAI, model: str, system: str | None, max_tokens: int, console: Console) -> None:
        self._client = client
        self._model = model
        self._system: list[Any] = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._system)
        self._max_tokens = max_tokens
        self._console = console

    def run(self) -> None:
        """Ask and answer until the user ends it. A question that the gateway refuses is dropped. Raises APIError."""
        from openai import APIConnectionError, APIError

        while (text := self._ask()) is not None:
            if text == "/new":
                self._messages = list(self._system)
            elif text:
                try:
                    self._answer(text)
                except APIConnectionError:
                    raise
                except APIError as error:
                    self._messages.pop()
                    self._console.print(f"[red]{gateway_error(error).message}[/red]")

    def _ask(self) -> str | None:
        try:
            text = self._console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            return None
        return None if text in ("/exit", "/quit") else text

    def _answer(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        parts: list[str] = []
        start = time.monotonic()
        stream = self._client.chat.completions.create(
            model=self._model,
            messages=self._messages,
            max_tokens=self._max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        usage = None
        try:
            for chunk in stream:
                usage = chunk.usage or usage
                if chunk.choices and chunk.choices[0].delta.content:
                    parts.append(chunk.choices[0].delta.content)
                    self._console.out(parts[-1], end="")
        except KeyboardInterrupt:
            stream.close()  # the gateway notices it and cancels the request
        self._console.print()
        if usage is not None:
            seconds = time.monotonic() - start
            self._console.print(f"[dim]{usage.completion_tokens} tokens in {seconds:.1f} s[/dim]")
        self._messages.append({"role": "assistant", "content": "".join(parts)})
