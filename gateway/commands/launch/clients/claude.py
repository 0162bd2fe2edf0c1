"""Claude Code: variables only. It speaks Anthropic's API."""

from gateway.commands.launch.client import Client, Folders, Setup, Target

#: Each size of Anthropic's models is the one model of the gateway.
_SIZES = ("OPUS", "SONNET", "HAIKU")


def _setup(target: Target, folders: Folders) -> Setup:
    sizes = {f"ANTHROPIC_DEFAULT_{size}_MODEL": target.model for size in _SIZES}
    return Setup(
        command=("claude", "--model", target.model),
        environment={
            "ANTHROPIC_BASE_URL": target.url,
            "ANTHROPIC_AUTH_TOKEN": target.sent_key,
            "ANTHROPIC_MODEL": target.model,
            **sizes,
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(target.answer),
            "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(target.context),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )


CLAUDE = Client(
    name="claude",
    title="Claude Code",
    install="npm install -g @anthropic-ai/claude-code",
    setup=_setup,
    prompt_tokens=12400,
)
