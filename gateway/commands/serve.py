"""`npu-gateway serve [NAME]`: pull or build what is missing, start the gateway, print a request to try."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.commands import options
from gateway.errors import ConfigError, GatewayError, quote
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.commands.models.prepare import HasNpu
    from gateway.config.tables import Config, LogConfig, ServerConfig
    from gateway.monitoring.log_file import LogFile


_TAKEN_S = 5.0  # after the start of the server, an engine has taken the processes that it uses


def add_parser(subparsers: options.Subparsers) -> None:
    text = "Start the gateway with all models of the configuration, or with one, which is pulled first if necessary."
    parser = subparsers.add_parser("serve", help="start the gateway", description=text)
    parser.add_argument(
        "model",
        metavar="NAME",
        nargs="?",
        help="serve this model and its fallbacks only: a configured name, or what `npu-gateway pull` takes",
    )
    options.add_config(parser)
    parser.add_argument("--host", help="address to listen on (default: from the configuration, 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, help="port to listen on, 0: any free one (default: from the configuration, 8000)"
    )
    options.add_provider(parser)
    parser.add_argument(
        "--insecure", action="store_true", default=None, help="let other machines connect without a key"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.model and arguments.model.lower().endswith(".toml"):
        raise ConfigError(f"{quote(arguments.model)} is a configuration: write `npu-gateway serve --config FILE`.")
    overrides = {
        "server.host": arguments.host,
        "server.port": arguments.port,
        "server.insecure": arguments.insecure,
        "models.provider": arguments.provider,
    }
    config = options.load(arguments, overrides, may_be_empty=bool(arguments.model))
    from gateway.commands.pinned import pin

    pin()
    from gateway.commands.doctor.port import bind_error
    from gateway.commands.models.prepare import ask_once, first_ready
    from gateway.engines.head_start import head_start
    from gateway.lanes.memory.needs import budget_bytes
    from gateway.monitoring import output

    if sys.stderr is not None and not sys.stderr.isatty():  # progress bars need the terminal itself
        output.never_block()  # before the worker inherits it
    has_npu = ask_once()
    is_free = bind_error(config.server.host, config.server.port) is None  # else no worker: `_serve` reports it
    begun = first_ready(config, arguments.model, has_npu) if is_free else None
    with head_start(begun, config.models_dir, budget_bytes(config.memory)):
        from gateway.server.signals.hangup import hangup_before_start

        with hangup_before_start():
            return _serve(arguments, config, overrides, has_npu)


def _serve(arguments: argparse.Namespace, config: Config, overrides: Mapping[str, Any], has_npu: HasNpu) -> int:
    from gateway.app import create_app
    from gateway.bundles.disk import data_folder
    from gateway.commands.greeting import greet
    from gateway.commands.models.prepare import prepare
    from gateway.commands.running.run_file import RunFile, announced
    from gateway.commands.running.stop import stopping_line
    from gateway.config.file import has_keys
    from gateway.config.find import find_config
    from gateway.config.keys import key_warnings
    from gateway.config.limits import limit_warnings
    from gateway.engines.head_start import end_unused
    from gateway.lanes.memory.needs import FILE as MEMORY_FILE
    from gateway.lanes.memory.needs import Needs
    from gateway.monitoring import logs, output
    from gateway.monitoring.usage.history import UsageHistory
    from gateway.monitoring.usage.store import UsageStore
    from gateway.pull.background.npu_bundles import NpuBundles
    from gateway.pull.watch import ConfigSource
    from gateway.server.heap import return_large_blocks
    from gateway.server.server import serve

    _listen(config.server).close()  # reports a port in use before a build of minutes
    return_large_blocks()
    if arguments.model:
        config = _with_one_model(arguments, config, overrides)
    file, _ = find_config(arguments.config)
    is_pipe = file.exists() and not file.is_file()  # which can be read only once
    only = config.default_model or "" if arguments.model else ""
    source = None if is_pipe else ConfigSource(arguments.config, overrides, config, only)
    npu_bundles = None if is_pipe else NpuBundles(arguments.config, overrides)
    config = prepare(config, has_npu=has_npu)
    output.never_block()
    file_of_log = _log_file(config.log)
    logs.setup(config.log.level, format=config.log.format, file=file_of_log)
    for line in [*key_warnings(config.server, file if has_keys(file) else None), *limit_warnings(config)]:
        logging.getLogger("gateway").warning("%s", line)
    database = options.open_state(config)
    usage = UsageHistory(UsageStore(database, config.usage.days)) if config.usage.enabled else None
    listener = _listen(config.server)
    address, port = config.server.host, listener.getsockname()[1]
    run_file = RunFile(
        url=options.base_url(address, port),
        host=address,
        port=port,
        config_file="" if is_pipe else str(file.absolute()),
        log_file=str(file_of_log.path) if file_of_log else "",
    )
    app = create_app(
        config,
        source=source,
        better_bundles=npu_bundles,
        config_file=str(file.absolute()),
        usage=usage,
        stop_token=run_file.token,
        needs=Needs(data_folder() / MEMORY_FILE),
        database=database,
    )
    tasks: list[asyncio.Task[None]] = []  # the event loop keeps only a weak reference to a task

    def greet_when_ready() -> None:
        tasks.append(asyncio.create_task(greet(config, app.state.router, port)))
        loop = asyncio.get_running_loop()
        loop.call_later(_TAKEN_S, loop.run_in_executor, None, end_unused)  # it waits for their ends

    def stopping(requests: int) -> None:
        for task in tasks:  # no greeting of a gateway that ends
            task.cancel()
        say(stopping_line(requests, config.server.shutdown_grace_s))

    with announced(run_file), usage.writing() if usage else nullcontext():
        serve(app, config.server, listener=listener, on_started=greet_when_ready, on_stopping=stopping)
    say("stopped")
    return 0


def say(line: str) -> None:
    """To a person in the terminal, else to the log."""
    if sys.stdout is not None and sys.stdout.isatty():
        with suppress(OSError):  # the terminal is closed
            print(line, flush=True)
    else:
        logging.getLogger("gateway").info("%s", line)


def _log_file(config: LogConfig) -> LogFile | None:
    """The file of the log. "auto": none if a person sees stderr."""
    from gateway.bundles.disk import data_folder
    from gateway.monitoring.logs import open_log_file

    is_seen = sys.stderr is not None and sys.stderr.isatty()
    if config.file == "" or (config.file == "auto" and is_seen):
        return None
    path = data_folder() / "logs" / "gateway.log" if config.file == "auto" else Path(config.file)
    return open_log_file(path, config.max_mb, config.files, config.format)


def _with_one_model(arguments: argparse.Namespace, config: Config, overrides: Mapping[str, Any]) -> Config:
    """The configuration with the model of the command line and its fallbacks, pulled if it is not there."""
    from gateway.commands.models.pull import pull_model, register
    from gateway.config.select import only_model, with_model
    from gateway.pull.config_edit import find_user_config
    from gateway.pull.stored import is_missing, own_spelling

    aliases = {alias: name for name, model in config.models.items() for alias in model.aliases}
    name = aliases.get(arguments.model) or own_spelling(arguments.model, config)
    if is_missing(config, name):
        user = find_user_config(arguments.config)
        pulled = pull_model(arguments.model, user)
        name = pulled.name
        try:
            register(user, pulled)
            config = options.load(arguments, overrides)
        except ConfigError as error:
            print(f"npu-gateway: {escape(error.message)}", file=sys.stderr)
            config = with_model(config, name, pulled.table, user.file, arguments.provider)
    return only_model(config, name)


def _listen(config: ServerConfig) -> socket.socket:
    from gateway.server.server import bind

    try:
        return bind(config)
    except ConfigError as error:  # the configuration is right: exit code 1, not 2
        raise GatewayError(_port_problem(config) or error.message) from None


def _port_problem(config: ServerConfig) -> str:
    """Who holds the port, and the next step; "" if the port is free and something else is wrong."""
    from gateway.commands.doctor.port import port

    (found,) = port(config)
    return f"{found.because[0].upper()}{found.because[1:]}. Next step: {found.step}." if found.because else ""
