"""Zed: a provider in its file of settings. It reads the key from a variable with the name of the provider."""

from gateway.commands.launch.client import KEY_VARIABLE, Client, File, Folders, Setup, Target

_PROVIDER = "local-npu"  # KEY_VARIABLE has this name in capitals


def _setup(target: Target, folders: Folders) -> Setup:
    model = {
        "name": target.model,
        "display_name": target.model,
        "max_tokens": target.context,
        "max_output_tokens": target.answer,
        "capabilities": {"tools": True, "images": False, "parallel_tool_calls": True, "prompt_cache_key": False},
    }
    provider = {"api_url": target.openai, "available_models": [model]}
    folder = folders.app_data() / "Zed" if folders.platform == "win32" else folders.home / ".config" / "zed"
    return Setup(
        command=("zed",),
        environment={KEY_VARIABLE: target.sent_key},
        files=(
            File(
                path=folder / "settings.json",
                format="json",
                content={"language_models": {"openai_compatible": {_PROVIDER: provider}}},
                identity="name",
            ),
        ),
    )


ZED = Client(name="zed", title="Zed", install="winget install ZedIndustries.Zed", setup=_setup)
