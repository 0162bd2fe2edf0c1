"""The command `llm`: its file of models, and its file of keys if the gateway has one."""

from gateway.commands.launch.client import PROVIDER, Client, File, Folders, Setup, Target


def _setup(target: Target, folders: Folders) -> Setup:
    folder = folders.of("LLM_USER_PATH", folders.app_data() / "io.datasette.llm")
    name = f"{PROVIDER}/{target.model}"
    model: dict[str, object] = {
        "model_id": name,
        "model_name": target.model,
        "api_base": target.openai,
        "supports_tools": True,
        "supports_schema": True,
    }
    files = []
    if target.key:
        model["api_key_name"] = PROVIDER
        files.append(File(path=folder / "keys.json", format="json", content={PROVIDER: target.key}))
    models = File(path=folder / "extra-openai-models.yaml", format="yaml", content=[model], identity="model_id")
    return Setup(command=("llm", "chat", "-m", name), files=(models, *files))


LLM = Client(name="llm", title="llm", install="pip install llm", setup=_setup, sends_limit=False)
