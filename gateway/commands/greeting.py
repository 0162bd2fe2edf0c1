"""The text that `serve` prints when every model has loaded or failed: URL, NPU, models, and a request to try."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import asdict

from gateway import __version__
from gateway.commands import options
from gateway.commands.doctor.interpreter import Interpreter, this_interpreter
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.config.tables import Config, Defaults
    from gateway.engines.base import EngineStatus
    from gateway.lanes.router import ModelInfo, Router

_QUESTION = "What is the capital of France?"
_log = logging.getLogger("gateway")


async def greet(config: Config, router: Router, port: int) -> None:
    """Wait until every model was tried, then print."""
    problems, _ = await asyncio.gather(server_problems(config), router.tried())
    for name, found in problems.items():
        if len(found) == 1 and found[0]:  # the engine has logged what is wrong with one of several
            _log.warning("%s: %s", name, found[0])
    models = router.models()
    if any(model.status.engine.state == "closed" for model in models):  # stopped while a model was loading
        return
    defaults = {model.name: router.defaults_for(model.name) for model in models}
    print(greeting(config, models, defaults, port, silent_models(problems)), flush=True)


async def server_problems(config: Config) -> dict[str, list[str]]:
    """For each upstream model: what is wrong with each of its servers; "": it answers. Takes a few seconds."""
    from gateway.config.tables import UpstreamModel
    from gateway.config.upstream import servers_of

    models = [(name, model) for name, model in config.models.items() if isinstance(model, UpstreamModel)]
    if not models:
        return {}
    from gateway.engines.upstream.reach import reach  # the engine has imported its HTTP client

    async def found(name: str, model: UpstreamModel) -> list[str]:
        return await asyncio.gather(*(reach(server) for server in servers_of(name, model)))

    results = await asyncio.gather(*(found(name, model) for name, model in models))
    return {name: result for (name, _), result in zip(models, results, strict=True)}


def silent_models(problems: Mapping[str, list[str]]) -> dict[str, str]:
    """The upstream models of which no server answers -> the reason."""
    silent = {name: found for name, found in problems.items() if all(found)}
    return {
        name: found[0] if len(found) == 1 else f"none of its {len(found)} servers is usable: {found[0]}"
        for name, found in silent.items()
    }


def greeting(
    config: Config,
    models: list[ModelInfo],
    defaults: Mapping[str, Defaults],
    port: int,
    silent: Mapping[str, str],
) -> str:
    """Args:
    silent: upstream models whose server does not answer -> the reason.
    """
    base = options.base_url(config.server.host, port)
    lines = [f"npu-gateway {__version__} on {base}/v1", *_other_machines(config, port), ""]
    for model in models:
        lines += _model_lines(model, defaults[model.name], silent.get(model.name, ""))
    lines += ["", *npu_line(config, models, this_interpreter()), *limit_line(models, defaults)]
    known = [model for model in models if model.name not in silent]
    ready = [model for model in known if model.status.engine.state == "ready" or model.status.loads_on_demand]
    if name := next((model.name for model in ready if _chats(model)), None):
        lines += ["", f"Open {base}/ in a browser, or try:"]
        lines += [f"  {line}" for line in request_lines(f"{base}/v1", name, config.needs_key)]
    elif not ready:
        lines += ["", "No model is ready. `npu-gateway doctor` looks for the reason."]
    return "\n".join(["", *map(escape, lines), ""])


def _other_machines(config: Config, port: int) -> Iterator[str]:
    from gateway.config.hosts import is_loopback

    if is_loopback(config.server.host):
        return
    if addresses := own_addresses() if config.server.host.strip("[]") in ("0.0.0.0", "::") else []:
        yield f"  for other machines: {', '.join(f'http://{address}:{port}/v1' for address in addresses[:3])}"
    if not config.needs_key:
        yield "  WARNING: there are no API keys, so every machine that can connect may use it ([server] api_keys)"


def own_addresses() -> list[str]:
    """IPv4 addresses of this machine, without loopback and those that a network did not give."""
    import ipaddress
    import socket

    import psutil

    found = [
        each.address for network in psutil.net_if_addrs().values() for each in network if each.family == socket.AF_INET
    ]
    return [text for text in found if not (ip := ipaddress.ip_address(text)).is_loopback and not ip.is_link_local]


def _chats(model: ModelInfo) -> bool:
    """False for an encoder. What a model can do is not known before it was loaded once."""
    capabilities = model.status.engine.capabilities
    return not capabilities or "chat" in capabilities


def _model_lines(model: ModelInfo, defaults: Defaults, problem: str) -> Iterator[str]:
    engine = model.status.engine
    also = f"  also as {', '.join(model.aliases)}" if model.aliases else ""
    if engine.state == "unloaded" and model.status.loads_on_demand:
        yield f"  {model.name}  loaded by its first request{also}"
        yield from _context_note(engine)
        return
    if engine.state != "ready":
        yield f"  {model.name}  {engine.state}: {engine.detail}"
        return
    if problem:
        yield f"  {model.name}  not ready: {problem}"
        return
    context = f"  context {engine.context_length}" if engine.context_length else ""
    working = sum(target.state != "down" for target in engine.targets)
    servers = f"  {working} of {len(engine.targets)} servers answer" if engine.targets else ""
    yield f"  {model.name}  {engine.state} on {engine.device}{servers}{context}{also}"
    yield from _context_note(engine)
    if budget := model.status.breaker.budget:
        yield f"    an answer is slow above {budget}"
    if not _chats(model):
        return
    chosen = {name: value for name, value in asdict(defaults).items() if value is not None}
    texts = (f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in chosen.items())
    yield f"    defaults: {', '.join(texts)}"


def _context_note(engine: EngineStatus) -> Iterator[str]:
    if engine.context_note:
        yield f"    {engine.context_note}"


def npu_line(config: Config, models: list[ModelInfo], interpreter: Interpreter) -> Iterator[str]:
    """Whether the NPU is used, and if not, why. Nothing without a model that could use it."""
    from gateway.config.tables import GenieModel, LocalModel

    local = {name: model for name, model in config.models.items() if isinstance(model, LocalModel | GenieModel)}
    engines = {model.name: model.status.engine for model in models if model.name in local}
    on_npu = [name for name, engine in engines.items() if engine.device == "npu" and engine.state == "ready"]
    emulated = [name for name, engine in engines.items() if engine.device == "emulated"]
    if on_npu:
        refusal = next((engines[name].mode_refusal for name in on_npu if engines[name].mode_refusal), "")
        mode = f"burst mode refused by the driver ({refusal})" if refusal else _mode(local[on_npu[0]])
        yield f"NPU: {_hardware(engines[on_npu[0]].soc)}, {mode}, for {', '.join(on_npu)}"
    elif not local:
        return
    elif interpreter.is_emulated:
        yield f"NPU: {interpreter.problem}"
    elif emulated:
        yield f'NPU: none; {", ".join(emulated)} runs on the slow emulator. `provider = "auto"` takes the CPU'
    elif all(isinstance(model, LocalModel) and model.provider == "cpu" for model in local.values()):
        yield 'NPU: not used, because the configuration has provider = "cpu"'
    elif all(engine.state == "unloaded" for engine in engines.values()):
        yield "NPU: not known before a model is loaded"
    elif interpreter.built_for == "win-arm64":
        yield "NPU: not used; `npu-gateway doctor` looks for the reason"
    else:
        yield "NPU: none found; models run on the CPU"


def _hardware(soc: int | None) -> str:
    from gateway.qnn.chips import HTP_ARCHITECTURES

    architecture = HTP_ARCHITECTURES.get(soc) if soc is not None else None
    return f"Hexagon v{architecture}" if architecture else "Hexagon"


def _mode(model: object) -> str:
    """The performance mode that its sessions get."""
    return str(getattr(model, "provider_options", {}).get("htp_performance_mode", "burst"))


def limit_line(models: list[ModelInfo], defaults: Mapping[str, Defaults]) -> Iterator[str]:
    """That answers are cut without `max_tokens`, if they are."""
    limits = {name: value for model in models if isinstance(value := defaults[name := model.name].max_tokens, int)}
    if not limits:
        return
    numbers = " or ".join(map(str, sorted(set(limits.values()))))
    which = "" if len(limits) == len(models) else f" of {', '.join(limits)}"
    yield (
        f"Answers{which} end after {numbers} tokens unless the client sets max_tokens ([defaults] max_tokens in the "
        "configuration)"
    )


def request_lines(url: str, model: str, has_keys: bool, platform: str = sys.platform) -> Iterator[str]:
    """Commands to try, for the usual shells of this machine.

    On Windows, the first one is for cmd and PowerShell; the second one for PowerShell, where `\\"` escapes nothing.
    """
    yield f'{own_command()} chat "{_QUESTION}"'
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": _QUESTION}]})
    headers = ["Content-Type: application/json", *(["Authorization: Bearer YOUR-KEY"] if has_keys else [])]
    if platform == "win32":
        key = "-Headers @{Authorization='Bearer YOUR-KEY'} " if has_keys else ""
        quoted = body.replace("'", "''")
        yield (
            f"(irm {url}/chat/completions -Method Post -ContentType application/json {key}-Body '{quoted}')"
            ".choices[0].message.content"
        )
    else:
        quoted = body.replace("'", "'\\''")
        yield " ".join(["curl", f"{url}/chat/completions", *(f"-H '{h}'" for h in headers), f"-d '{quoted}'"])


def own_command() -> str:
    """How this program is started in the shell: its name, or its path in an environment that is not active."""
    from gateway.config.find import own_program

    if shutil.which("npu-gateway"):
        return "npu-gateway"
    program = own_program("npu-gateway.exe" if sys.platform == "win32" else "npu-gateway")
    if not program.is_file():
        return f"{Path(sys.executable).stem} -m gateway"
    try:
        return str(program.relative_to(Path.cwd()))
    except ValueError:
        return str(program)
