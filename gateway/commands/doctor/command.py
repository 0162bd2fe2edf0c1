"""`npu-gateway doctor`: why it is slow, not on the NPU, or refused. A verdict with the next step, then all checks.

Each check uses the real part, also the NPU's driver, within a time limit. Nothing is built or downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import to_builtins

from gateway.commands import options
from gateway.commands.doctor.bounded import bounded
from gateway.commands.doctor.finding import Finding
from gateway.commands.doctor.verdict import verdict
from gateway.commands.tables import wrapped, write_table
from gateway.errors import ConfigError, GatewayError
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.commands.doctor.gateway_state import Readiness
    from gateway.commands.running.find import Found
    from gateway.config.tables import Config

_TEXT = """\
Check this machine, the configuration, every model, the running gateway, the servers of upstream models and the
database of [state], and answer once on the device. The first line is the verdict: the first cause that explains the
trouble, and the next step. Exit code 1 if a line is bad. Into a pipe, one line for each check with these fields between
tabs: ok, note or bad; the check; details."""
_SHORT_S, _LOAD_S = 60.0, 180.0  # limits of one check


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor", help="find out why it is slow, refused or not on the NPU", description=_TEXT
    )
    options.add_config(parser)
    parser.add_argument("--url", help="the gateway (default: the one that runs)")
    parser.add_argument("--quick", action="store_true", help="load no model and generate nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    with native_output_hidden():
        findings = list(examine_all(arguments))
    found = verdict(findings)
    if arguments.json:
        checks = [
            {"level": each.level, "what": each.what, "detail": each.detail, "cause": each.cause} for each in findings
        ]
        print(json.dumps({"verdict": to_builtins(found), "checks": checks}, indent=2))
    else:
        _print(str(found), findings)
    return 1 if any(finding.level == "bad" for finding in findings) else 0


@contextmanager
def native_output_hidden() -> Iterator[None]:
    """Native libraries write to stdout when they load, in this process and in its children: not into the report."""
    with suppress(OSError, AttributeError):
        sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # without a console
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - not a path of files
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _print(first: str, findings: list[Finding]) -> None:
    if sys.stdout is not None and sys.stdout.isatty():
        import shutil

        print("\n".join(wrapped(escape(first), shutil.get_terminal_size().columns)), end="\n\n")
    else:
        print(escape(first))
    write_table([(each.level, each.what, each.detail) for each in findings], ("", "check", ""))


def examine_all(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Every check. Those that load a model come last."""
    from gateway.commands.doctor import driver, machine, power
    from gateway.commands.doctor.interpreter import this_interpreter

    is_arm = sys.platform == "win32" and this_interpreter().host == "ARM64"
    yield from bounded("machine", _SHORT_S, machine.machine)
    yield from bounded("Windows", _SHORT_S, lambda: machine.build_note(machine.windows_build(), is_arm))
    yield from bounded("libraries", _SHORT_S, machine.libraries)
    yield from bounded("NPU driver", _SHORT_S, lambda: driver.driver_findings(driver.installed_drivers(), is_arm))
    yield from bounded("NPU", _SHORT_S, lambda: driver.npu(is_arm))
    yield from bounded("power", _SHORT_S, lambda: power.power_findings(power.read_power()))
    try:
        config = options.load(arguments)
    except ConfigError as error:
        yield Finding(
            "bad", "configuration", error.message, "configuration", error.message, "correct the configuration"
        )
        return
    yield from bounded("configuration", _SHORT_S, lambda: _configuration(arguments, config))
    yield from _with(arguments, config)


def _configuration(arguments: argparse.Namespace, config: Config) -> Iterator[Finding]:
    from gateway.config.file import has_keys
    from gateway.config.find import find_config
    from gateway.config.keys import key_warnings
    from gateway.config.limits import limit_warnings

    file, _ = find_config(arguments.config)
    address = options.base_url(config.server.host, config.server.port)
    models = "1 model" if len(config.models) == 1 else f"{len(config.models)} models"
    yield Finding("ok", "configuration", f"{file}: {models}, {address}")
    for line in key_warnings(config.server, file if has_keys(file) else None):
        yield Finding("note", "keys", line)
    for line in limit_warnings(config):
        yield Finding("note", "limits", line)
    if config.server.insecure and not config.needs_key:
        yield Finding(
            "note", "keys", "insecure is set and there are no keys: every machine that can connect may use the gateway"
        )


def _with(arguments: argparse.Namespace, config: Config) -> Iterator[Finding]:
    from gateway.commands.doctor import gateway_state, models, port, resources, upstream
    from gateway.commands.running import find
    from gateway.config.find import find_config
    from gateway.lanes.memory.needs import budget_bytes

    if arguments.url:
        find.checked_url(arguments.url)
    try:
        found = find.find_gateway(arguments, config)
        state = gateway_state.read_state(found)
    except GatewayError as error:  # several run
        yield Finding("note", "gateway", error.message)
        found, state = find.Found(url=""), None
    else:
        is_named, file = bool(arguments.url), str(find_config(arguments.config)[0].absolute())
        check = partial(gateway_state.state_findings, found, state, is_named=is_named, config_file=file)
        yield from bounded("gateway", _SHORT_S, check)
        if state is not None:
            yield from bounded("answers", _SHORT_S, partial(gateway_state.last_answers, found))
    is_running = state is not None
    if not arguments.url:
        yield from bounded("port", _SHORT_S, lambda: port.port(config.server))
    yield from bounded("memory", _SHORT_S, lambda: resources.resources(config, is_running=is_running))
    yield from bounded("upstream", _SHORT_S, lambda: upstream.upstream(config))
    yield from bounded("database", _SHORT_S, lambda: resources.database(config))
    budget = budget_bytes(config.memory)
    for name, model in config.models.items():
        yield from bounded(f"model {name}", _LOAD_S, partial(models.files, name, model, budget))
    yield from bounded("settings", _SHORT_S, lambda: _devices(config))
    if not arguments.quick:
        yield from _loading(config, found, state)


def _devices(config: Config) -> Iterator[Finding]:
    """What the bundles are made for, and settings, against the device of this machine."""
    from gateway.commands.doctor import models
    from gateway.qnn.detect import try_detect_npu
    from gateway.qnn.device import machine_of
    from gateway.worker.decoders.threads import default_threads

    local = models.checked_locally(config)
    device = try_detect_npu(emulated=True) if local else None
    has_npu = device is not None and device.kind == "npu"
    for name, model in local.items():
        if device:
            yield from models.fit(name, model, machine_of(device))
        yield from models.settings(name, model, has_npu=has_npu, cores=default_threads())


def _loading(config: Config, found: Found, state: Readiness | None) -> Iterator[Finding]:
    """What takes minutes at most: the graphs on the NPU, and one answer, by the running gateway if it has the model."""
    from gateway.bundles.encoder.bundle import is_encoder_bundle
    from gateway.commands.doctor import models, speed

    loaded = [model for model in state.models if model.engine.state == "ready"] if state else []
    serving = {each.model for each in loaded if each.breaker.state == "closed" and "chat" in each.engine.capabilities}
    local = models.checked_locally(config)
    here = [name for name in local if name not in {model.model for model in loaded} and models.is_ready(local[name])]
    for name in here:
        _progress(f"checking the graphs of {name}")
        yield from bounded(f"model {name} on the NPU", _LOAD_S, partial(_graphs, config, name))
    here = [name for name in here if not is_encoder_bundle(Path(local[name].path))]
    chosen = speed.chosen(config, [*(each for each in config.models if each in serving), *here])
    if chosen is None:
        return
    _progress(f"measuring {chosen}")
    if chosen in serving and state:
        measured = next(model for model in state.models if model.model == chosen)
        check = partial(speed.of_gateway, found, measured, config, _LOAD_S)
    else:
        check = partial(speed.of_engine, chosen, config, _LOAD_S)
    yield from bounded(f"speed of {chosen}", _LOAD_S + _SHORT_S, check)


def _graphs(config: Config, name: str) -> Iterator[Finding]:
    from gateway.commands.doctor import models
    from gateway.config.tables import LocalModel
    from gateway.qnn.detect import try_detect_npu

    model = config.models[name]
    if isinstance(model, LocalModel):
        yield from models.npu_graphs(name, model, has_npu=try_detect_npu() is not None)


def _progress(text: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"npu-gateway: {escape(text)} ...", file=sys.stderr, flush=True)
