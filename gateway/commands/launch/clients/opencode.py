"""opencode: a provider in its file of settings."""

from gateway.commands.launch.client import PROVIDER, Client, File, Folders, Setup, Target


def _setup(target: Target, folders: Folders) -> Setup:
    model = {
        "name": target.model,
        "tool_call": True,
        "limit": {"context": target.context, "output": target.answer},
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": PROVIDER,
        "options": {"baseURL": target.openai, "apiKey": target.sent_key},
        "models": {target.model: model},
    }
    folder = folders.config() / "opencode"
    names = [name for name in ("opencode.jsonc", "opencode.json") if (folder / name).is_file()]
    content = {"$schema": "https://opencode.ai/config.json", "provider": {PROVIDER: provider}}
    return Setup(
        command=("opencode", "--model", f"{PROVIDER}/{target.model}"),
        environment={"OPENCODE_DISABLE_AUTOUPDATE": "1"},
        files=(File(path=folder / (names or ["opencode.json"])[0], format="json", content=content),),
    )


OPENCODE = Client(
    name="opencode",
    title="opencode",
    install="npm install -g opencode-ai",
    setup=_setup,
    prompt_tokens=7700,
)
