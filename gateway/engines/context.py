"""The checks of an answer's size in the gateway process: of the context length, which the worker only asserts, and of
the log-probabilities."""

from __future__ import annotations

from gateway.errors import ContextLengthExceeded, InvalidRequest
from gateway.generation import Chat, Generation

#: Log-probabilities of one answer. The gateway keeps each until the client has it, in up to 300 bytes.
MAX_LOGPROBS = 250_000


def max_answer_tokens(generation: Generation, prompt_tokens: int, context_length: int) -> int:
    """The tokens that each choice can get: the request's `max_tokens`, or what the context has left.

    Raises:
        ContextLengthExceeded: the context has no space for one token of the answer.
        InvalidRequest: the answer can have more than MAX_LOGPROBS log-probabilities.
    """
    left = context_length - prompt_tokens
    if left < min(1, generation.max_tokens):
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens. However, your prompt has "
            f"{prompt_tokens} tokens. Please reduce its length.",
            param="messages" if isinstance(generation.prompt, Chat) else "prompt",
        )
    max_tokens = min(generation.max_tokens, left)
    scored_prompt = prompt_tokens if generation.prompt_logprobs else 0
    check_logprobs(generation, scored_prompt + generation.n * max_tokens)
    return max_tokens


def check_logprobs(generation: Generation, tokens: int) -> None:
    """Raise InvalidRequest if `tokens` tokens have more than MAX_LOGPROBS log-probabilities."""
    if generation.logprobs is None:
        return
    for_each = 1 + generation.logprobs
    if tokens * for_each > MAX_LOGPROBS:
        raise InvalidRequest(
            f"This request asks for up to {tokens * for_each} log-probabilities ({for_each} for each of {tokens} "
            f"tokens), and at most {MAX_LOGPROBS} are possible. Reduce max_tokens, n or the number of top "
            "log-probabilities.",
            param="logprobs",
        )
