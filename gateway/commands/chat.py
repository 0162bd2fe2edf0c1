"""`npu-gateway chat`: a conversation in the terminal, with a gateway that is running."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from gateway.commands import options
from gateway.errors import GatewayError, UpstreamFailed

if TYPE_CHECKING:
    from openai import OpenAI
    from rich.console import Console

HELP = "/new begins a new conversation, /exit or Ctrl-D ends. Ctrl-C stops an answer."


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "chat", help="talk to a running gateway", description=f"Talk to a running gateway. {HELP}"
    )
    options.add_config(parser)
    parser.add_argument("--url", help="the gateway (default: where the configuration says it listens)")
    parser.add_argument("--api-key", help="key to send (default: the configuration's first)")
    parser.add_argument("--model", help="model or alias (default: the gateway's first)")
    parser.add_argument("--system", metavar="TEXT", help="instructions that stand before the conversation")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest answer, in tokens (default: 512)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from openai import APIError, OpenAI
    from rich.console import Console

    config = options.load(arguments)
    url = arguments.url or f"{options.base_url(config.server.host, config.server.port)}/v1"
    key = arguments.api_key or next(iter(config.server.api_keys.values()), "none")
    console = Console(highlight=False)
    client = OpenAI(base_url=url, api_key=key)
    try:
        model = arguments.model or client.models.list().data[0].id
        console.print(f"[dim]{model} at {url}. {HELP}[/dim]")
        Conversation(client, model, arguments.system, arguments.max_tokens, console).run()
    except APIError as error:
        raise as_ours(error, url) from None
    finally:
        client.close()
    return 0


class Conversation:
    """The turns so far, and the loop that adds to them."""

    def __init__(self, client: OpenAI, model: str, system: str | None, max_tokens: int, console: Console) -> None:
        self._client = client
        self._model = model
        self._beginning: list[Any] = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._beginning)
        self._max_tokens = max_tokens
        self._console = console

    def run(self) -> None:
        """Until the user has had enough. An error of the gateway is shown, and its question forgotten."""
        from openai import APIConnectionError, APIError

        while (text := self._ask()) is not None:
            if text == "/new":
                self._messages = list(self._beginning)
            elif text:
                try:
                    self._answer(text)
                except APIConnectionError:
                    raise
                except APIError as error:
                    self._messages.pop()
                    self._console.print(f"[red]{as_ours(error, '').message}[/red]")

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
            stream.close()  # the gateway sees it and stops the device
        self._console.print()
        if usage is not None:
            seconds = time.monotonic() - start
            self._console.print(f"[dim]{usage.completion_tokens} tokens in {seconds:.1f} s[/dim]")
        self._messages.append({"role": "assistant", "content": "".join(parts)})


def as_ours(error: Any, url: str) -> GatewayError:
    """What the client library raised, in the words of the gateway that refused or of a person who cannot reach it."""
    from openai import APIConnectionError

    if isinstance(error, APIConnectionError):
        return UpstreamFailed(f"nobody answers at {url}; start the gateway with `npu-gateway serve`")
    body = error.body if isinstance(error.body, dict) else {}
    return UpstreamFailed(str(body.get("message") or error.message))
