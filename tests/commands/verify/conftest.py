from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from gateway.commands.client import openai_client
from gateway.commands.verify.check import Check, results
from gateway.commands.verify.peer import Peer
from tests.support.verify_gateway import CARD, CONTEXT, Mistake, serve_answers

#: The checks of a module, and a mistake -> name of a check -> how it ended; without those that passed.
Ended = Callable[[Iterable[Check], Mistake], dict[str, str]]


@pytest.fixture(scope="session")
def ended() -> Ended:
    def run(checks: Iterable[Check], mistake: Mistake) -> dict[str, str]:
        with serve_answers(mistake) as url, openai_client(url, "", retries=0) as client:
            peer = Peer(client, "good", context=CONTEXT, capabilities=tuple(CARD["capabilities"]))
            return {each.name: each.outcome for each in results(checks, peer) if each.outcome != "passed"}

    return run
