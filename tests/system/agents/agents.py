"""Coding agents as a user has them: installed from a lock file, configured by `launch`, run with one prompt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gateway.commands.launch.client import Folders, Target
from gateway.commands.launch.clients import CLIENTS
from gateway.commands.launch.files import write
from tests.support import npm
from tests.support.server import Running

HERE = Path(__file__).parent
RUN_S = 1200  # a busy machine; a run of a real model takes one to five minutes on two cores
PROMPT = "Read the file notes.txt with a tool and say what it contains."
NOTES = "The kettle is blue."
SYSTEM = "You are a coding agent in a terminal. Use the tools."  # in place of the client's own, for a short context
QWEN_SHORT = {
    "memory": {"enableManagedAutoMemory": False},
    "tools": {"disabled": ["agent", "get_goal", "list_agents", "skill", "tool_call", "tool_search", "update_goal"]},
}
#: No client reports usage, updates itself or asks its maker's servers.
QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLINE_NO_AUTO_UPDATE": "1",
    "CLINE_SESSION_BACKEND_MODE": "local",  # no process that outlives the test
    "CLINE_TELEMETRY_DISABLED": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "IS_SANDBOX": "1",  # Claude Code as root
    "NO_UPDATE_NOTIFIER": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "QWEN_CODE_SUPPRESS_YOLO_WARNING": "1",
}


class Agent(NamedTuple):
    """How to run a client with one prompt and without a terminal.

    Args:
        group: the folder with its package.json.
        program: what npm has installed.
        arguments: all after the program, from those of `launch`.
        tool: the name and the arguments of its tool that reads a file.
        short: arguments that make its prompt fit into 8192 tokens.
        files: the same, as files of the project.
        long: arguments in place of `short`, for all of its tools.
    """

    group: str
    program: tuple[str, ...]
    arguments: Callable[[tuple[str, ...]], list[str]]
    tool: Callable[[Path], tuple[str, dict[str, Any]]]
    short: tuple[str, ...] = ()
    files: Mapping[str, str] = {}
    long: tuple[str, ...] = ()


AGENTS = {
    "continue": Agent(
        "small",
        ("node", "node_modules/@continuedev/cli/dist/cn.js"),
        lambda own: [*own, "-p", PROMPT],
        lambda file: ("Read", {"filepath": str(file)}),
        ("--readonly",),
        long=("--auto",),
    ),
    "claude": Agent(
        "small",
        ("node", "node_modules/@anthropic-ai/claude-code/cli-wrapper.cjs"),
        lambda own: [*own, "-p", PROMPT, "--max-turns", "4"],
        lambda file: ("Read", {"file_path": str(file)}),
        ("--tools", "Read", "--system-prompt", SYSTEM),
    ),
    "codex": Agent(
        "large",
        ("node", "node_modules/@openai/codex/bin/codex.js"),
        lambda own: ["exec", *own, "--skip-git-repo-check", "-s", "read-only", PROMPT],
        lambda file: ("exec_command", {"cmd": f"cat {file}"}),
        ("-c", 'model_instructions_file="system.md"'),
        {"system.md": SYSTEM},
    ),
    "qwen": Agent(
        "large",
        ("node", "node_modules/@qwen-code/qwen-code/cli.js"),
        lambda own: [*own, "--yolo", "-p", PROMPT],
        lambda file: ("read_file", {"file_path": str(file)}),
        ("--core-tools", "read_file", "--system-prompt", SYSTEM),
        {".qwen/settings.json": json.dumps(QWEN_SHORT)},
    ),
    "opencode": Agent(
        "large",
        ("node_modules/opencode-linux-x64/bin/opencode",),
        lambda own: ["run", "--title", "test", *own, PROMPT],
        lambda file: ("read", {"filePath": str(file)}),
        (),
        {"opencode.json": json.dumps({"agent": {"build": {"prompt": SYSTEM}}})},
    ),
    "copilot": Agent(
        "large",
        ("node", "node_modules/@github/copilot/npm-loader.js"),
        lambda own: [*own, "-p", PROMPT, "--allow-all-tools"],
        lambda file: ("view", {"path": str(file)}),
    ),
    "cline": Agent(
        "large",
        ("node", "node_modules/cline/bin/cline"),
        lambda own: [*own, "--retries", "1", PROMPT],
        lambda file: ("read_files", {"paths": [str(file)]}),
        ("-s", SYSTEM),
    ),
}


def install(group: str, folder: Path) -> Path:
    """Install the locked packages of a group into `folder`. Skips the test if that is not possible here."""
    return npm.install(HERE / group, ("package.json", "package-lock.json"), folder, "install", "--no-save")


def run(name: str, packages: Path, server: Running, model: str, home: Path, *, is_short: bool = False) -> str:
    """Run the client in a new home folder, as `launch` configures it. Returns its output; it must end with 0."""
    agent, work = AGENTS[name], home / "project"
    work.mkdir(parents=True)
    (work / "notes.txt").write_text(f"{NOTES}\n", encoding="utf-8")
    for file, text in agent.files.items() if is_short else ():
        (work / file).parent.mkdir(exist_ok=True)
        (work / file).write_text(text, encoding="utf-8")
    folders = Folders(home=home, environ={}, platform=sys.platform)
    with server.http() as client:
        card = client.get(f"/v1/models/{model}").json()
    kind = _ShortAnswers if is_short else Target
    target = kind(url=server.url, key="", model=model, context=card["context_length"])
    setup = CLIENTS[name].setup(target, folders)
    for each in setup.files:
        list(write(each))
    program = [str(packages / part) if part.startswith("node_modules") else part for part in agent.program]
    command = [*program, *agent.arguments(setup.command[1:]), *(agent.short if is_short else agent.long)]
    done = subprocess.run(
        command,
        cwd=work,
        env={**_environment(home), **QUIET, **setup.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=RUN_S,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{name} ended with {done.returncode}\n{output[-4000:]}"
    return output


class _ShortAnswers(Target, frozen=True, kw_only=True):
    """A real model does not always end its answer. Some clients send their token limit with each request."""

    @property
    def answer(self) -> int:
        return 32


def _environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "SYSTEMROOT", "TMPDIR")}
    return {**kept, "HOME": str(home), "USERPROFILE": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


class Exchange(NamedTuple):
    """A request of a client and the reply of the gateway."""

    method: str
    path: str
    body: Any
    status: int
    reply: str


@contextmanager
def recorded(server: Running) -> Iterator[list[Exchange]]:
    """The exchanges of a running server while the block runs."""
    found: list[Exchange] = []
    inner = server.app.asgi_handler

    async def record(scope: Any, receive: Any, send: Any) -> None:
        sent: list[bytes] = []
        replied: list[bytes] = []
        status = 0

        async def receiving() -> Any:
            message = await receive()
            sent.append(message.get("body", b""))
            return message

        async def sending(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            replied.append(message.get("body", b""))
            await send(message)

        if scope["type"] != "http":
            await inner(scope, receive, send)
            return
        try:
            await inner(scope, receiving, sending)
        finally:
            text, reply = b"".join(sent), b"".join(replied).decode(errors="replace")
            body = json.loads(text) if text.startswith(b"{") else text.decode(errors="replace")
            found.append(Exchange(scope["method"], scope["path"], body, status, reply))

    server.app.asgi_handler = record
    try:
        yield found
    finally:
        server.app.asgi_handler = inner


def errors(exchanges: list[Exchange]) -> list[str]:
    """The replies that a client reports as an API error. Probes of other addresses may get 404."""
    return [
        f"{each.method} {each.path}: {each.status} {each.reply[:500]}"
        for each in exchanges
        if each.status != 200 and not (each.method in ("GET", "HEAD") and each.status == 404)
    ] + [f"{each.path}: {each.reply[-500:]}" for each in exchanges if '"error":{' in each.reply.replace(" ", "")]
