"""Continue: its file of models, for the CLI and for the extensions of VS Code and JetBrains."""

from gateway.commands.launch.client import PROVIDER, Client, File, Folders, Setup, Target


def _setup(target: Target, folders: Folders) -> Setup:
    model = {
        "name": f"{PROVIDER} {target.model}",
        "provider": "openai",
        "model": target.model,
        "apiBase": target.openai,
        "apiKey": target.sent_key,
        "roles": ["chat", "edit", "apply"],
        "capabilities": ["tool_use"],
        "defaultCompletionOptions": {"contextLength": target.context, "maxTokens": target.answer},
    }
    path = folders.of("CONTINUE_GLOBAL_DIR", folders.home / ".continue") / "config.yaml"
    return Setup(
        command=("cn", "--config", str(path)),
        environment={"CONTINUE_TELEMETRY_ENABLED": "0"},
        files=(
            File(
                path=path,
                format="yaml",
                content={"models": [model]},
                identity="name",
                initial="name: Local\nversion: 1.0.0\nschema: v1\n",
            ),
        ),
    )


CONTINUE = Client(
    name="continue",
    title="Continue CLI",
    install="npm install -g @continuedev/cli",
    setup=_setup,
    prompt_tokens=2000,
)
