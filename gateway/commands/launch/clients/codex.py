"""Codex CLI: a separate profile next to config.toml. It speaks the Responses API."""

from typing import Any

from gateway.commands.launch.client import KEY_VARIABLE, PROVIDER, Client, File, Folders, Setup, Target


def _setup(target: Target, folders: Folders) -> Setup:
    provider = {"name": PROVIDER, "base_url": target.openai, "wire_api": "responses"}
    if target.key:
        provider["env_key"] = KEY_VARIABLE
    content: dict[str, Any] = {
        "model": target.model,
        "model_provider": PROVIDER,
        "model_context_window": target.context,
        "web_search": "disabled",
        "check_for_update_on_startup": False,
        "model_providers": {PROVIDER: provider},
        "features": {"multi_agent": False, "goals": False},
    }
    folder = folders.of("CODEX_HOME", folders.home / ".codex")
    return Setup(
        command=("codex", "--profile", PROVIDER),
        environment={KEY_VARIABLE: target.key} if target.key else {},
        files=(File(path=folder / f"{PROVIDER}.config.toml", format="toml", content=content),),
    )


CODEX = Client(
    name="codex",
    title="Codex CLI",
    install="npm install -g @openai/codex",
    setup=_setup,
    prompt_tokens=5800,
    sends_limit=False,
)
