"""The checks of an answer's size in the gateway process: of the context length, which the worker only asserts, and of
the log-probabilities."""

from __future__ import annotations

from gateway.embedding import Inputs
from gateway.errors import ContextLengthExceeded, InvalidRequest
from gateway.generation import UNLIMITED, Chat, Generation, Prompt

#: Log-probabilities of one answer. The gateway keeps each until the client has it, in up to 300 bytes.
MAX_LOGPROBS = 250_000


def text_prompt(name: str, generation: Generation) -> Prompt:
    """The prompt of a request for text, at a model that generates text. Raises InvalidRequest for another request."""
    if isinstance(generation.prompt, Inputs):
        raise InvalidRequest(f"The model '{name}' generates text; it makes no embeddings and no scores.", param="model")
    return generation.prompt


def answer_reserve(generation: Generation, context_length: int) -> int | None:
    """The tokens that a chat must leave for its answer, for which its oldest messages go. None: none goes.

    The request's `max_tokens`, a quarter of the context without a limit, and at most half of the context: clients ask
    for more than the context has.
    """
    if not generation.truncation or not isinstance(generation.prompt, Chat):
        return None
    wanted = context_length // 4 if generation.max_tokens == UNLIMITED else generation.max_tokens
    return min(wanted, context_length // 2)


def max_answer_tokens(generation: Generation, prompt_tokens: int, context_length: int, dropped: int = 0) -> int:
    """The tokens that each choice can get: the request's `max_tokens`, or what the context has left.

    Args:
        dropped: messages that are not in the prompt, because it would be too long.
    Raises:
        ContextLengthExceeded: the context has no space for one token of the answer.
        InvalidRequest: the answer can have more than MAX_LOGPROBS log-probabilities.
    """
    left = context_length - prompt_tokens
    if left < min(1, generation.max_tokens):
        is_kept = generation.truncation and isinstance(generation.prompt, Chat)
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens. However, your prompt has "
            f"{prompt_tokens} tokens{f' without its {dropped} oldest messages' if dropped else ''}. "
            f"{'Shorten the system text, the tools or the newest turn.' if is_kept else 'Please reduce its length.'}",
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
