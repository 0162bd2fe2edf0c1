"""Finds the gateway that a command is for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec import Struct

from gateway.commands import options
from gateway.commands.running.run_file import RunFile, running_gateways
from gateway.config.hosts import is_loopback, server_url
from gateway.errors import ConfigError, NotFound, cut

if TYPE_CHECKING:
    from gateway.config.tables import Config, ServerConfig

_PORTS = {"http": 80, "https": 443}


class Found(Struct, frozen=True, kw_only=True):
    """The gateway, or another server, that a command is for."""

    url: str  # without a slash or /v1 at the end: "http://127.0.0.1:8400"
    key: str = ""  # to send; "": none
    run: RunFile | None = None  # None: a server without one, which may run on another machine

    @property
    def api_url(self) -> str:
        """The base URL for OpenAI's client. A path of another server stays as it is."""
        return self.url if urlsplit(self.url).path else f"{self.url}/v1"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose a gateway."""
    options.add_config(parser)
    parser.add_argument("--url", help="the gateway (default: the one that runs)")


def add_gateway(parser: argparse.ArgumentParser) -> None:
    """The same, and the port."""
    add_options(parser)
    parser.add_argument("--port", type=int, help="the port of the gateway on this machine")


def add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--api-key", help="key to send (default: the first one in the gateway's configuration)")


def required_run(found: Found) -> RunFile:
    """The run file of the gateway. Raises NotFound."""
    if found.run is None:
        gateways = running_gateways()
        where = f"at {found.url}" if gateways else "of this user"
        raise NotFound(f"No gateway {where} runs on this machine{others(gateways)}.")
    return found.run


def find_gateway(arguments: argparse.Namespace, config: Config | None = None) -> Found:
    """The gateway of `--url` or `--port`; else the one on the configured port; else the only one that runs.

    If none runs: the configured address, where a gateway without a run file may answer. A key of the configuration is
    for the gateways that use this configuration: with `--url` of another server none is sent.

    Args:
        arguments: with `config`, and where the command has them `url`, `port` and `api_key`.
        config: the configuration; None: it is read, and one with a mistake counts as empty unless it was named.

    Raises:
        ConfigError: `--url` is not a URL, or the named configuration has a mistake.
        NotFound: several gateways run, none of them on the configured port, or none runs on the port of `--port`.
    """
    from gateway.config.tables import ServerConfig

    server = config.server if config else _server(arguments) or ServerConfig(port=_port_of_file())
    key = getattr(arguments, "api_key", None)
    if url := getattr(arguments, "url", None):
        found = _named(url, server)
    else:
        port: int | None = getattr(arguments, "port", None)
        run = _on_port(port) if port is not None else _chosen(server.port)
        address = run.url if run else options.base_url(server.host, server.port)
        found = Found(url=address, key=_key_of(run, server), run=run)
    return Found(url=found.url, key=key or found.key, run=found.run)


def _server(arguments: argparse.Namespace) -> ServerConfig | None:
    try:
        return options.load(arguments, may_be_empty=True).server
    except ConfigError:
        if arguments.config:
            raise
        return None  # a mistake made while the gateway runs must not prevent that it is stopped


def _port_of_file() -> int:
    """The port of the gateway that runs with the file that is read here; without one the default."""
    from gateway.config.find import find_config
    from gateway.config.tables import ServerConfig

    file = find_config()[0].resolve()
    ports = (run.port for run in running_gateways() if run.config_file and Path(run.config_file).resolve() == file)
    return next(ports, ServerConfig().port)


def _named(text: str, server: ServerConfig) -> Found:
    """The server of `--url`, with the key of the configuration only if it is that gateway."""
    url = checked_url(text).rstrip("/").removesuffix("/v1")
    address = _address(url)
    run = next((run for run in running_gateways() if _address(run.url) == address), None)
    is_own = run is not None or address == _address(options.base_url(server.host, server.port))
    return Found(url=url, key=_key_of(run, server) if is_own else "", run=run)


def checked_url(text: str) -> str:
    """The value of `--url`. Raises ConfigError with the right spelling."""
    if "://" not in text and (match := re.fullmatch(r"(?:([\w.-]*|\[[0-9a-fA-F:]+\]):)?(\d+)(/.*)?", text)):
        host, port, path = match.groups("")
        raise ConfigError(f"--url: {cut(text, 100)!r} is not a URL: write http://{host or '127.0.0.1'}:{port}{path}")
    try:
        server_url(text)
    except ValueError as problem:
        raise ConfigError(f"--url: {cut(text, 100)!r} is not a URL: write one {problem}") from None
    return text


def _address(url: str) -> tuple[str, int | None]:
    """Host and port, with one name for every address of this machine's loopback."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return "loopback" if is_loopback(host) else host, parts.port or _PORTS.get(parts.scheme)


def _key_of(run: RunFile | None, server: ServerConfig) -> str:
    """The first key of the configuration that the gateway uses, as far as it is known."""
    from gateway.config.file import load_config

    file = Path(run.config_file) if run and run.config_file else None
    if file and file.is_file():
        with suppress(ConfigError):  # changed since the gateway started
            server = load_config(file, may_be_empty=True).server
    return next(iter(server.api_keys.values()), "")


def _on_port(port: int) -> RunFile:
    gateways = running_gateways()
    for run in gateways:
        if run.port == port:
            return run
    raise NotFound(f"No gateway runs on port {port}{others(gateways)}.")


def _chosen(port: int) -> RunFile | None:
    gateways = running_gateways()
    configured = [run for run in gateways if run.port == port]
    if len(gateways) > 1 and not configured:
        raise NotFound(f"No gateway runs on port {port}{others(gateways)}. Choose one with --url.")
    return next(iter(configured or gateways), None)


def others(gateways: Sequence[RunFile]) -> str:
    """For the end of a message: "; one runs at http://127.0.0.1:8400"; "" if none runs."""
    urls = [run.url for run in gateways]
    if not urls:
        return "; start one with `npu-gateway serve`"
    return f"; one runs at {urls[0]}" if len(urls) == 1 else f"; these run: {', '.join(urls)}"
