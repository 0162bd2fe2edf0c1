"""The tokenizer and the chat template of a local model, without its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.engines.local.prompts import Prompts
from gateway.generation import Chat, Prompt


class LocalTextTools:
    """Implements TextTools.

    Args:
        prompts: returns the text side of the bundle; raises ModelNotReady before the engine is ready.
    """

    def __init__(self, prompts: Callable[[], Prompts]) -> None:
        self._prompts = prompts

    def encode(self, prompt: Prompt) -> list[int]:
        return self._prompts().encode_prompt(prompt).ids

    def tokenize(self, text: str, *, begin: bool, specials: bool) -> list[int]:
        return self._prompts().tokens.encode(text, begin=begin, specials=specials)

    def decode(self, ids: Sequence[int]) -> str:
        return self._prompts().tokens.decode(ids)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        tokens = self._prompts().tokens
        tokens.check_ids(ids, "tokens")
        return [tokens.token_bytes(index) for index in ids]

    def render(self, chat: Chat) -> str:
        return self._prompts().encode_prompt(chat).rendered
