"""Open WebUI: variables of its server."""

import json

from gateway.commands.launch.client import Client, Folders, Setup, Target

#: Its 36 tools are 7000 tokens in each chat. Without "vision", the page refuses an image, for which it would get 400.
CAPABILITIES = {"builtin_tools": False, "vision": False}
#: For titles, tags and proposed questions. A small model may not end these by itself.
TASK_TOKENS = 256


def _setup(target: Target, folders: Folders) -> Setup:
    return Setup(
        command=("open-webui", "serve", "--host", "127.0.0.1", "--port", "8080"),
        environment={
            "OPENAI_API_BASE_URL": target.openai,
            "OPENAI_API_KEY": target.sent_key,
            "DEFAULT_MODELS": target.model,
            "DEFAULT_MODEL_METADATA": json.dumps({"capabilities": CAPABILITIES}),
            "DEFAULT_MODEL_PARAMS": json.dumps({"max_tokens": target.answer}),
            "TASK_MODEL_PARAMS": json.dumps({"max_tokens": TASK_TOKENS}),
            "ENABLE_OLLAMA_API": "false",
            "ENABLE_PERSISTENT_CONFIG": "false",
            "WEBUI_AUTH": "false",
            "DO_NOT_TRACK": "true",
        },
    )


OPEN_WEBUI = Client(name="open-webui", title="Open WebUI", install="pip install open-webui", setup=_setup)
