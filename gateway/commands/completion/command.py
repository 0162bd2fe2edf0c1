"""`npu-gateway completion SHELL`: print the script that lets the Tab key complete commands, options and models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gateway.commands import options
from gateway.monitoring.output import escape

_SHELLS = ("bash", "zsh", "fish", "powershell")
_TEXT = """\
Print a script for your shell that completes commands, options, their values and the models of the configuration. Its
first lines say where it goes; for bash: eval "$(npu-gateway completion bash)" in ~/.bashrc."""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("completion", help="let the Tab key complete commands", description=_TEXT)
    parser.add_argument("shell", metavar="SHELL", choices=_SHELLS, help=", ".join(_SHELLS))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from gateway.commands.completion.scripts import SCRIPTS

    print(SCRIPTS[arguments.shell].lstrip(), end="")
    return 0


def print_candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Print what a script of `completion` requests: a line for each candidate, its text and its help.

    Args:
        words: those of the command line; the last one is `:` and the word to complete.
    """
    from gateway.commands.completion.candidates import candidates

    if words:
        for text, help in candidates(parser, words[:-1], words[-1].removeprefix(":")):
            print(f"{escape(text)}\t{escape(help)}")
    return 0
