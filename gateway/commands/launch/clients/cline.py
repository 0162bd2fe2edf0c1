"""Cline CLI: its file of providers."""

from gateway.commands.launch.client import Client, File, Folders, Setup, Target

_PROVIDER = "openai-compatible"
_UPDATED = "2026-01-01T00:00:00.000Z"  # it ignores a provider without a date


def _setup(target: Target, folders: Folders) -> Setup:
    settings = {
        "provider": _PROVIDER,
        "apiKey": target.sent_key,
        "model": target.model,
        "baseUrl": target.openai,
        "maxTokens": target.answer,
        "contextWindow": target.context,
    }
    content = {
        "version": 1,
        "lastUsedProvider": _PROVIDER,
        "modes": {},
        "providers": {_PROVIDER: {"settings": settings, "updatedAt": _UPDATED, "tokenSource": "manual"}},
    }
    data = folders.of("CLINE_DATA_DIR", folders.of("CLINE_DIR", folders.home / ".cline") / "data")
    return Setup(
        command=("cline", "-P", _PROVIDER, "-m", target.model),
        files=(File(path=data / "settings" / "providers.json", format="json", content=content),),
    )


CLINE = Client(
    name="cline",
    title="Cline CLI",
    install="npm install -g cline",
    setup=_setup,
    prompt_tokens=5700,
)
