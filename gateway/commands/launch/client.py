"""What `launch` knows about a client, and what the client needs to know about the gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from gateway.pull.installed.programs import app_data, named

PROVIDER = "npu-gateway"  # the name of the gateway in files of clients
#: The variable with the key, for clients that read one. Variables that begin with NPU_GATEWAY_ configure the gateway,
#: which can be started from the shell of a client.
KEY_VARIABLE = "LOCAL_NPU_API_KEY"
_LONGEST_ANSWER = 8192


class Target(Struct, frozen=True, kw_only=True):
    """The gateway and the model that a client gets.

    Args:
        url: the address without a path: http://127.0.0.1:8000
        key: the API key; "": the gateway has none.
        context: the tokens of prompt and answer together, as the loaded model has them.
    """

    url: str
    key: str
    model: str
    context: int

    @property
    def openai(self) -> str:
        return f"{self.url}/v1"

    @property
    def sent_key(self) -> str:
        """For clients that refuse to work without a key."""
        return self.key or "none"

    @property
    def answer(self) -> int:
        """The token limit of an answer: a quarter of the context."""
        return max(1, min(self.context // 4, _LONGEST_ANSWER))

    @property
    def prompt(self) -> int:
        """The rest of the context."""
        return self.context - self.answer


class Folders(Struct, frozen=True, kw_only=True):
    """Where clients keep their files."""

    home: Path
    environ: Mapping[str, str]
    platform: str

    def of(self, variable: str, default: Path) -> Path:
        """The folder that an environment variable names, or `default`."""
        return named(self.environ, variable, default)

    def config(self) -> Path:
        """~/.config, for clients that use it on every system."""
        return self.of("XDG_CONFIG_HOME", self.home / ".config")

    def app_data(self) -> Path:
        """%APPDATA% on Windows, ~/Library/Application Support on macOS, ~/.config on Linux."""
        return app_data(self.home, self.environ, self.platform)


class File(Struct, frozen=True, kw_only=True):
    """A change of a client's file: `content` is merged into it.

    Objects are merged key by key. In lists, an entry with the same `identity` is replaced; others are added.
    """

    path: Path
    format: Literal["json", "yaml", "toml"]
    content: dict[str, Any] | list[Any]
    identity: str = ""  # the key that names an entry of a list
    initial: str = ""  # the beginning of a file that does not exist yet


class Setup(Struct, frozen=True, kw_only=True):
    """What `launch` does: write the files, set the variables, start the command."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = {}
    files: tuple[File, ...] = ()


class Client(Struct, frozen=True, kw_only=True):
    """A program that can use the gateway.

    Args:
        prompt_tokens: tokens that it sends with the first message, counted by SmolLM2's tokenizer; 0: few.
        sends_limit: it sends a token limit with each request.
    """

    name: str
    title: str
    install: str
    setup: Callable[[Target, Folders], Setup]
    prompt_tokens: int = 0
    sends_limit: bool = True
