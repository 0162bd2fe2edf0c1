"""Open WebUI: variables of its server."""

from gateway.commands.launch.client import Client, Folders, Setup, Target


def _setup(target: Target, folders: Folders) -> Setup:
    return Setup(
        command=("open-webui", "serve", "--host", "127.0.0.1", "--port", "8080"),
        environment={
            "OPENAI_API_BASE_URL": target.openai,
            "OPENAI_API_KEY": target.sent_key,
            "DEFAULT_MODELS": target.model,
            "ENABLE_OLLAMA_API": "false",
            "ENABLE_PERSISTENT_CONFIG": "false",
            "WEBUI_AUTH": "false",
            "DO_NOT_TRACK": "true",
        },
    )


OPEN_WEBUI = Client(
    name="open-webui",
    title="Open WebUI",
    install="pip install open-webui",
    setup=_setup,
    sends_limit=False,
)
