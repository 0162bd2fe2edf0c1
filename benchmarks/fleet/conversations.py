"""The work: conversations with growing prompts, and system prompts that many of them share."""

from __future__ import annotations

import math
import random

from fleet.plan import Plan
from gateway.engines.scripted.script import CHIPS
from gateway.engines.upstream.prefixes import BLOCK_TOKENS

CONTEXT = 4096  # tokens


class Conversation:
    """The turns of one chat with an application's system prompt. Turns are drawn one after another."""

    def __init__(self, number: int, plan: Plan) -> None:
        seed, self.number, self.last_turn = plan.seed, number, plan.last_turn
        self.random = random.Random(seed << 32 | number)
        self.app = min(int(self.random.paretovariate(0.7)) - 1, 29)  # some applications have most conversations
        self.shared = (0, 250, 500, 900, 1300, 1700)[self.app % 6]  # tokens of the system prompt
        self.length = self.shared  # tokens so far

    def turn(self) -> tuple[int, int] | None:
        """Tokens of the prompt and of the answer; None: the conversation is over."""
        draw, is_first = self.random, self.length == self.shared
        if not is_first and draw.random() < self.last_turn:
            return None
        message = min(draw.lognormvariate(math.log(80), 1.0), 2000)
        if draw.random() < (0.3 if is_first else 0.05):
            message += draw.uniform(300, 1500)  # with a document
        answer = min(max(draw.lognormvariate(math.log(110), 0.7), 5), 600)
        prompt = self.length + int(message) + 1
        if prompt + answer > CONTEXT:
            return None
        self.length = prompt + int(answer)
        return prompt, int(answer)

    def blocks(self, tokens: int) -> list[int]:
        """Hashes of the full blocks. Those of the system prompt are shared."""
        most, shared = tokens // BLOCK_TOKENS, min(tokens, self.shared) // BLOCK_TOKENS
        common, own = -1 - 64 * self.app, 64 * self.number
        return [*range(common, common - shared, -1), *range(own + shared, own + most)]


def conversation_s(plan: Plan, count: int = 2000) -> float:
    """Mean device time of a conversation on the slower chip, if the cache has every message that was sent before."""
    total, base = 0.0, CHIPS["x-elite"]
    for number in range(count):
        conversation = Conversation((1 << 31) + number, plan)
        known = conversation.length
        while turn := conversation.turn():
            total += math.ceil((turn[0] - known) / base.chunk_width) * base.chunk_s + (turn[1] - 1) * base.step_s
            known = conversation.length
    return total / count
