"""GitHub Copilot CLI: variables only. It needs no account with a model of one's own."""

from gateway.commands.launch.client import Client, Folders, Setup, Target


def _setup(target: Target, folders: Folders) -> Setup:
    return Setup(
        command=("copilot",),
        environment={
            "COPILOT_PROVIDER_BASE_URL": target.openai,
            "COPILOT_PROVIDER_TYPE": "openai",
            "COPILOT_PROVIDER_API_KEY": target.sent_key,
            "COPILOT_MODEL": target.model,
            "COPILOT_PROVIDER_MAX_PROMPT_TOKENS": str(target.prompt),
            "COPILOT_PROVIDER_MAX_OUTPUT_TOKENS": str(target.answer),
            "COPILOT_OFFLINE": "true",
        },
    )


COPILOT = Client(
    name="copilot",
    title="GitHub Copilot CLI",
    install="npm install -g @github/copilot",
    setup=_setup,
    prompt_tokens=12300,
)
