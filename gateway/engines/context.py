"""The one check of the context length in the gateway process. The worker only asserts it."""

from __future__ import annotations

from gateway.errors import ContextLengthExceeded
from gateway.generation import Chat, Generation


def max_answer_tokens(generation: Generation, prompt_tokens: int, context_length: int) -> int:
    """The tokens that each choice can get: the request's `max_tokens`, or what the context has left.

    Raises:
        ContextLengthExceeded: the context has no space for one token of the answer.
    """
    left = context_length - prompt_tokens
    if left < min(1, generation.max_tokens):
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens. However, your prompt has "
            f"{prompt_tokens} tokens. Please reduce its length.",
            param="messages" if isinstance(generation.prompt, Chat) else "prompt",
        )
    return min(generation.max_tokens, left)
