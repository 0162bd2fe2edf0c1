"""aider: variables, and a file with the context length, which it cannot know."""

from gateway.commands.launch.client import Client, File, Folders, Setup, Target


def _setup(target: Target, folders: Folders) -> Setup:
    model = f"openai/{target.model}"
    metadata = {
        "litellm_provider": "openai",
        "mode": "chat",
        "max_tokens": target.answer,
        "max_input_tokens": target.prompt,
        "max_output_tokens": target.answer,
        "input_cost_per_token": 0,
        "output_cost_per_token": 0,
    }
    return Setup(
        command=("aider", "--model", model),
        environment={
            "OPENAI_API_BASE": target.openai,
            "OPENAI_API_KEY": target.sent_key,
            "AIDER_ANALYTICS_DISABLE": "true",
            "AIDER_CHECK_UPDATE": "false",
        },
        files=(File(path=folders.home / ".aider.model.metadata.json", format="json", content={model: metadata}),),
    )


AIDER = Client(
    name="aider",
    title="aider",
    install="python -m pip install aider-install && aider-install",
    setup=_setup,
    sends_limit=False,
)
