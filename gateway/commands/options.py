"""What the commands share: the type of their parsers, the option that names the config file, and reading it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.config import Config

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the configuration (default: ./config.toml if there is one, else the one that came with the gateway)",
    )


def add_provider(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--provider", choices=("auto", "cpu", "qnn"), help="where every local model runs")


def load(arguments: argparse.Namespace, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration in force. Raises ConfigError."""
    from gateway.config_file import load_config

    return load_config(arguments.config, overrides=overrides)


def base_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a gateway that listens there."""
    host = host.strip("[]")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # every address: take loopback
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
