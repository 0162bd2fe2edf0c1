"""The argument parser: commands in groups, and the right spelling of a wrong word."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gateway.commands import options
from gateway.config.value import closest, nearest

#: The command of another program -> ours for it. Those that are missing here are not named.
_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "add": ("pull",),
    "ask": ("chat",),
    "benchmark": ("bench",),
    "convert": ("build",),
    "create": ("build", "config"),
    "delete": ("rm",),
    "down": ("stop",),
    "download": ("pull",),
    "generate": ("chat",),
    "get": ("pull",),
    "info": ("models", "doctor"),
    "init": ("config",),
    "install": ("pull", "service"),
    "kill": ("stop",),
    "ls": ("list", "ps"),
    "prompt": ("chat",),
    "quantize": ("build",),
    "quit": ("stop",),
    "remove": ("rm",),
    "restart": ("stop", "serve"),
    "run": ("serve", "chat"),
    "search": ("catalog",),
    "show": ("models", "check"),
    "start": ("serve",),
    "status": ("ps", "doctor"),
    "test": ("verify",),
    "up": ("serve",),
}


class Command(Protocol):
    """A module of a command."""

    def add_parser(self, subparsers: options.Subparsers) -> None: ...


class Parser(argparse.ArgumentParser):
    """Names the nearest right spelling, with the usage of the command that was meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0][:100]!a}{self._hint(unknown[0].partition('=')[0])}")
        return found, unknown

    def _hint(self, flag: str) -> str:
        """The end of the message for an unknown argument: the option or the form that was meant."""
        if not flag.startswith("-"):
            return ""
        name = flag.lstrip("-")
        for action in self._get_positional_actions():
            if name == action.dest:
                return f"; write it without {flag}: `{self.prog} {action.metavar}`"
        spellings = {option.lstrip("-"): option for option in self._option_string_actions}
        near = closest(name, spellings)
        return f"; did you mean {spellings[near]!r}?" if near else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            is_inner = " " in self.prog  # of `npu-gateway config`
            known = [*action.choices, *([] if is_inner else ["help", "version"])]
            hint = ours(value, action.choices) or nearest(value, known) or "."
            how = "--help" if is_inner else "help"
            self.error(f"there is no command {value[:100]!a}{hint} `{self.prog} {how}` lists the commands.")
        super()._check_value(action, value)


class GroupedParser(Parser):
    """The parser of all commands; its help lists them by task."""

    def __init__(self, groups: Mapping[str, Sequence[Command]], **arguments: Any) -> None:
        super().__init__(**arguments)
        subparsers: Any = self.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
        self._groups = {title: _added(commands, subparsers) for title, commands in groups.items()}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        if not args:
            self.exit(2, self.format_help())
        flag = args[0].partition("=")[0]
        if flag.startswith("-") and not any(known.startswith(flag) for known in self._option_string_actions):
            self.error(f"unknown argument {flag[:100]!a} before the command; write `{self.prog} COMMAND {flag[:100]}`")
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, actions in self._groups.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def _added(commands: Sequence[Command], subparsers: options.Subparsers) -> list[argparse.Action]:
    """Add the commands; the lines of the help that they made."""
    before = len(subparsers._choices_actions)
    for command in commands:
        command.add_parser(subparsers)
    return subparsers._choices_actions[before:]


def ours(word: str, known: Mapping[str, Any]) -> str:
    """The end of the message for a command of another program: `; use ...`; "" if the word is none."""
    found = [f"`npu-gateway {name}`" for name in _ELSEWHERE.get(word, ()) if name in known]
    return f"; use {' or '.join(found)}." if found else ""
