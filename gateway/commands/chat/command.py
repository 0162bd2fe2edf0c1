"""`npu-gateway chat`: one question and its answer, or a conversation in the terminal.

npu-gateway chat                          a conversation
npu-gateway chat "QUESTION"               prints the answer, and nothing else, to stdout
npu-gateway chat "SUMMARISE" < FILE       the question, then the text of the file
echo "QUESTION" | npu-gateway chat        the same without arguments
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

from gateway.commands import options
from gateway.commands.client import gateway_error, models_of, openai_client
from gateway.commands.running.find import add_options, find_gateway
from gateway.config.value import nearest
from gateway.errors import GatewayError, NotFound, quote
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.commands.chat.conversation import Conversation

MAX_TOKENS = 512

_TEXT = """\
Talk to a running gateway, or ask one question: `npu-gateway chat "QUESTION"` prints only the answer. Text on standard
input is added to the question: `npu-gateway chat "Summarise this." < notes.txt`."""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("chat", help="talk to a running gateway", description=_TEXT)
    parser.add_argument("question", metavar="QUESTION", nargs="*", help="print the answer to this, and end")
    add_options(parser)
    parser.add_argument("--api-key", help="key to send (default: the first one in the configuration)")
    options.add_model(parser, "model or alias (default: default_model, else the first model that is ready)")
    parser.add_argument("--system", metavar="TEXT", help="instructions for the whole conversation")
    parser.add_argument(
        "--max-tokens",
        type=options.positive,
        default=MAX_TOKENS,
        help=f"longest answer, in tokens (default: {MAX_TOKENS}; API clients that send no limit get [defaults] "
        "max_tokens of the configuration)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from openai import APIError

    from gateway.commands.chat.conversation import Conversation
    from gateway.commands.chat.question import read_question

    config = options.load(arguments, may_be_empty=True)
    found = find_gateway(arguments, config)
    is_terminal = not arguments.question and _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    question = "" if is_terminal else read_question(arguments.question)
    with openai_client(found.api_url, found.key, retries=0) as client:
        try:
            models = models_of(client)
        except APIError as error:
            raise gateway_error(error) from None
        model = chosen(models, arguments.model, config.default_model)
        conversation = Conversation(client, model, system=arguments.system or "", max_tokens=arguments.max_tokens)
        if is_terminal:
            from gateway.commands.chat.terminal import Terminal

            return Terminal(conversation, [model["id"] for model in models], found.url).run()
        return answer_once(conversation, question)


def chosen(models: list[dict[str, Any]], name: str | None, default: str | None) -> str:
    """The model with this name, or the default one, or the first that is ready. Raises NotFound."""
    names = [model["id"] for model in models]
    if name:
        if name.removesuffix(":background") not in names:
            hint = nearest(name, names) or f" It has: {', '.join(names[:10]) or 'none'}."
            raise NotFound(f"The gateway has no model {quote(name)}{hint if hint[0] == ';' else f'.{hint}'}")
        return name
    if default in names and default is not None:
        return default
    if not names:
        raise NotFound("The gateway has no model. `npu-gateway catalog` lists models to download.")
    by_state = {model.get("state", "ready"): model["id"] for model in reversed(models)}
    return str(by_state.get("ready") or by_state.get("unloaded") or names[0])  # a request loads an unloaded one


def answer_once(conversation: Conversation, question: str) -> int:
    """Print the answer while it comes, and nothing else. Raises GatewayError, KeyboardInterrupt."""
    from gateway.commands.chat.conversation import Answer, for_terminal

    answer, is_terminal = Answer(), _is_terminal(sys.stdout)
    try:
        with closing(conversation.ask(question, answer)) as pieces:
            for piece in pieces:
                if piece.kind == "text":
                    print(for_terminal(piece.text) if is_terminal else piece.text, end="", flush=True)
    except (GatewayError, KeyboardInterrupt):
        if answer.text and is_terminal:
            print()
        raise
    if not answer.text.strip():
        raise GatewayError(f"The model answered without text{f': {answer.note}' if answer.note else ''}.")
    if not answer.text.endswith("\n"):
        print()
    if answer.note:
        print(f"npu-gateway: {escape(answer.note)}", file=sys.stderr)
    return 0


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
