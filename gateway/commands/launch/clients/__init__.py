"""The clients that `launch` knows. One file has the settings of each; docs/clients has a page about it."""

from __future__ import annotations

from gateway.commands.launch.client import Client
from gateway.commands.launch.clients.aider import AIDER
from gateway.commands.launch.clients.claude import CLAUDE
from gateway.commands.launch.clients.cline import CLINE
from gateway.commands.launch.clients.codex import CODEX
from gateway.commands.launch.clients.continue_dev import CONTINUE
from gateway.commands.launch.clients.copilot import COPILOT
from gateway.commands.launch.clients.llm import LLM
from gateway.commands.launch.clients.open_webui import OPEN_WEBUI
from gateway.commands.launch.clients.opencode import OPENCODE
from gateway.commands.launch.clients.qwen import QWEN
from gateway.commands.launch.clients.zed import ZED

_ALL = (AIDER, CLAUDE, CLINE, CODEX, CONTINUE, COPILOT, LLM, OPEN_WEBUI, OPENCODE, QWEN, ZED)
CLIENTS: dict[str, Client] = {client.name: client for client in _ALL}
