"""The commands of a conversation, which begin with `/`. They are not sent to the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.commands.chat.conversation import Conversation
from gateway.config.value import nearest
from gateway.errors import quote

#: command -> (argument, effect)
COMMANDS = {
    "/help": ("", "list the commands"),
    "/model": ("[NAME]", "list the models, or change to another one"),
    "/new": ("", "start a new conversation"),
    "/system": ("[TEXT]", "set the instructions for the model; without a text: remove them"),
    "/exit": ("", "end (also Ctrl-D)"),
}
_OTHER_NAMES = {"/quit": "/exit", "/bye": "/exit", "/clear": "/new", "/?": "/help", "/models": "/model"}
_HELP = (
    "Ctrl-C stops an answer.",
    'A question of several lines is between two lines with """.',
    "Begin with a space to send a text that starts with /.",
)


def is_command(line: str) -> bool:
    return line.startswith("/")


def execute(line: str, conversation: Conversation, models: Sequence[str]) -> list[str] | None:
    """Execute a command. Returns lines for the user; None: end the conversation."""
    word, _, argument = line.strip().partition(" ")
    command = _OTHER_NAMES.get(word, word)
    if command == "/exit":
        return None
    actions: dict[str, Callable[[], list[str]]] = {
        "/help": _help,
        "/new": lambda: _new(conversation),
        "/model": lambda: _model(argument.strip(), conversation, models),
        "/system": lambda: _system(argument.strip(), conversation),
    }
    if command not in actions:
        return [f"There is no command {quote(word)}{nearest(word, COMMANDS) or '.'} /help lists the commands."]
    return actions[command]()


def _help() -> list[str]:
    return [*(f"{f'{name} {argument}':<15} {effect}" for name, (argument, effect) in COMMANDS.items()), *_HELP]


def _new(conversation: Conversation) -> list[str]:
    conversation.clear()
    return ["A new conversation begins."]


def _model(name: str, conversation: Conversation, models: Sequence[str]) -> list[str]:
    if not name:
        return [f"{'*' if model == conversation.model else ' '} {model}" for model in models]
    if name.removesuffix(":background") not in models:
        return [f"The gateway has no model {quote(name)}{nearest(name, models) or '.'} /model lists the models."]
    conversation.model = name
    return [f"{name} answers from now on."]


def _system(text: str, conversation: Conversation) -> list[str]:
    conversation.system = text
    return ["The instructions are set." if text else "There are no instructions now."]
