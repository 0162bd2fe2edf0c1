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

    async def encode(self, prompt: Prompt, client: str) -> list[int]:
        return (await self._prompts().encode_prompt(prompt, client)).ids

    async def tokenize(self, text: str, client: str, *, begin: bool, specials: bool) -> list[int]:
        return await self._prompts().tokenize(text, client, begin=begin, specials=specials)

    async def decode(self, ids: Sequence[int], client: str) -> str:
        return await self._prompts().decode(ids, client)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        tokens = self._prompts().tokens
        tokens.check_ids(ids, "tokens")
        return [tokens.token_bytes(index) for index in ids]

    async def render(self, chat: Chat, client: str) -> str:
        return (await self._prompts().encode_prompt(chat, client)).rendered
