"""Shared by the commands: options of their parsers, the configuration, the gateway's URL."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.config.tables import Config
    from gateway.state.database import Database

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the configuration (default: ./config.toml if it exists, else that of your data folder or of the package)",
    )


def add_provider(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--provider",
        type=lambda name: "qnn" if name == "npu" else name,
        choices=("auto", "cpu", "qnn"),
        help="where every local model runs; npu is another name of qnn",
    )


def add_model(parser: argparse.ArgumentParser, help: str) -> None:
    """`--model`, for the name of a configured model."""
    parser.add_argument("--model", metavar="NAME", help=help)


def positive(text: str) -> int:
    """The type of an option that is a number of 1 or more."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def load(
    arguments: argparse.Namespace, overrides: Mapping[str, Any] | None = None, *, may_be_empty: bool = False
) -> Config:
    """Read the configuration; `may_be_empty`: it may have no model. Raises ConfigError."""
    from gateway.config.file import load_config

    return load_config(arguments.config, overrides=overrides, may_be_empty=may_be_empty)


def open_state(config: Config) -> Database:
    """The database of the configuration. Close it. Raises GatewayError: its driver is missing."""
    from gateway.bundles.disk import data_folder
    from gateway.state.database import StateError
    from gateway.state.open import open_database

    try:
        return open_database(config.state.url, data_folder())
    except StateError as error:
        raise GatewayError(f"[state] url: {error}") from None


@contextmanager
def state_of(config: Config) -> Iterator[Database]:
    """The database of the configuration, closed at the end. Its errors become errors of the command."""
    from gateway.state.database import StateError

    try:
        with closing(open_state(config)) as database:
            yield database
    except StateError as error:
        raise GatewayError(f"the database of [state] cannot be used: {error}") from None


def base_url(host: str, port: int) -> str:
    """The URL for clients on this machine of a gateway that listens on `host`."""
    host = host.strip("[]")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # the host means every address: use loopback
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
