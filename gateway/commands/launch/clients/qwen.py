"""Qwen Code: a model in its file of settings."""

from gateway.commands.launch.client import KEY_VARIABLE, PROVIDER, Client, File, Folders, Setup, Target

_TIMEOUT_MS = 600_000  # the time to the first token of a long prompt on a slow machine


def _setup(target: Target, folders: Folders) -> Setup:
    model = {
        "id": target.model,
        "name": f"{PROVIDER} {target.model}",
        "baseUrl": target.openai,
        "envKey": KEY_VARIABLE,
        "generationConfig": {
            "timeout": _TIMEOUT_MS,
            "contextWindowSize": target.context,
            "samplingParams": {"max_tokens": target.answer},
        },
    }
    return Setup(
        command=("qwen", "--auth-type", "openai", "--model", target.model),
        environment={KEY_VARIABLE: target.sent_key},
        files=(
            File(
                path=folders.home / ".qwen" / "settings.json",
                format="json",
                content={"modelProviders": {"openai": [model]}},
                identity="id",
            ),
        ),
    )


QWEN = Client(
    name="qwen",
    title="Qwen Code",
    install="npm install -g @qwen-code/qwen-code",
    setup=_setup,
    prompt_tokens=18400,
)
