"""The words that can follow on a command line, from the argument parser itself."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.commands import options
from gateway.errors import GatewayError

#: bash and PowerShell put a candidate on the command line as it is, where `$(...)` would run. A configuration, and so
#: the names of its models, can come with the current folder.
_PLAIN = re.compile(r"[\w.][\w.:/@+,-]*")
_WORDS = {"help": "list the commands", "version": "print the version"}


class Candidate(NamedTuple):
    text: str
    help: str = ""


def candidates(parser: argparse.ArgumentParser, words: Sequence[str], current: str) -> list[Candidate]:
    """What can replace `current` after these words; nothing where a path or a free text follows.

    Args:
        words: after the name of the program, without `current`.
    """
    if words[:1] == ["help"]:
        return _matching(_commands(parser), current) if len(words) == 1 else []
    position = _Position(parser)
    for word in words:
        position.pass_over(word)
    if "--" in words:
        return []
    if position.pending:
        return _matching(position.values(position.pending), current)
    option, equals, value = current.partition("=")
    if equals and (action := position.option(option)):
        found = _matching(position.values(action), value)
        return [Candidate(f"{option}={text}", help) for text, help in found]
    if current.startswith("-"):
        return _matching(position.options(), current)
    return _matching(position.positionals(), current)


class _Position:
    """The state at the end of a command line: the parser of its command, and an option that needs its value."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.pending: argparse.Action | None = None
        self._root = self._parser = parser
        self._used: set[str] = set()
        self._count = 0  # of positional arguments of the command
        self._config: str | None = None  # the value of --config

    def pass_over(self, word: str) -> None:
        if self.pending is not None:
            self._take(self.pending, word)
            self.pending = None
            return
        option, equals, value = word.partition("=")
        if action := self.option(option):
            self._used.add(option)
            if equals:
                self._take(action, value)
            elif action.nargs != 0:
                self.pending = action
        elif (commands := _subcommands(self._parser)) and word in commands.choices:
            self._parser, self._count = commands.choices[word], 0
        else:
            self._count += 1

    def option(self, text: str) -> argparse.Action | None:
        return self._parser._option_string_actions.get(text)

    def options(self) -> Iterator[Candidate]:
        for name, action in self._parser._option_string_actions.items():
            if name.startswith("--") and name not in self._used and action.help != argparse.SUPPRESS:
                yield Candidate(name, _text(self._parser, action))

    def positionals(self) -> Iterator[Candidate]:
        actions = self._parser._get_positional_actions()
        many = [action for action in actions if action.nargs in ("*", "+")]
        left = actions[self._count : self._count + 1] or many[-1:]
        for action in left:
            if isinstance(action, argparse._SubParsersAction):
                yield from _commands(self._parser)
                if self._parser is self._root:
                    yield from (Candidate(word, help) for word, help in _WORDS.items())
            else:
                yield from self.values(action)

    def values(self, action: argparse.Action) -> Iterator[Candidate]:
        if action.choices:
            yield from (Candidate(str(choice)) for choice in action.choices)
        elif action.dest == "model":
            yield from self._models()

    def _models(self) -> Iterator[Candidate]:
        """Names and aliases of the configuration; none if it has a mistake."""
        try:
            path = Path(self._config) if self._config else None
            config = options.load(argparse.Namespace(config=path), may_be_empty=True)
        except GatewayError:
            return
        for name, model in config.models.items():
            if _PLAIN.fullmatch(name):
                yield Candidate(name, f"engine {model.engine}")
            yield from (Candidate(alias, f"alias of {name}") for alias in model.aliases if _PLAIN.fullmatch(alias))

    def _take(self, action: argparse.Action, value: str) -> None:
        if action.dest == "config":
            self._config = value


def _commands(parser: argparse.ArgumentParser) -> Iterator[Candidate]:
    if commands := _subcommands(parser):
        yield from (Candidate(line.dest, line.help or "") for line in commands._choices_actions)


def _subcommands(parser: argparse.ArgumentParser) -> options.Subparsers | None:
    found = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next(found, None)


def _text(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default, "prog": parser.prog}


def _matching(found: Iterator[Candidate], current: str) -> list[Candidate]:
    return [candidate for candidate in found if candidate.text.startswith(current)]
