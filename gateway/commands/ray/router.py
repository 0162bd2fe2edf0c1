"""Which replica of a Ray cluster answers: that with the conversation in its cache, unless others are much less loaded.

The same policy chooses a target of an upstream model (engines/upstream/policy.py). Ray's own prefix router compares
texts too, but never leaves a replica that is overloaded, unless it is configured to, and keeps all texts for ever.
"""

from __future__ import annotations

import zlib
from itertools import count
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from gateway.commands.ray.call import Call
from gateway.engines.upstream.policy import Candidate, choose
from gateway.engines.upstream.prefixes import BLOCK_CHARACTERS, PrefixIndex, blocks_of
from gateway.generation import Text

_SLOTS = 64  # replicas that the index keeps apart


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Prefers the replica that had the start of the body, and among equals the one with the fewest requests."""

    def initialize_state(self) -> None:
        self._index = PrefixIndex(_SLOTS)
        self._slots: dict[ReplicaID, int] = {}
        self._next_slot = count()

    def _slot(self, replica: ReplicaID) -> int:
        if replica not in self._slots:
            self._slots[replica] = next(self._next_slot) % _SLOTS
        return self._slots[replica]

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The chosen replica, and then all others, for when its line is full."""
        replicas = sorted(
            self.select_available_replicas(candidate_replicas), key=lambda each: each.replica_id.unique_id
        )
        if len(replicas) < 2:
            return [candidate_replicas]
        prompt = _prompt(pending_request)
        known = self._index.matches(blocks_of(prompt))
        candidates = [Candidate(self._load(replica.replica_id)) for replica in replicas]
        matches = [known[self._slot(replica.replica_id)] for replica in replicas]
        # the same in each ingress: the next request of the conversation can come through another one
        tie = zlib.crc32(prompt.text[:BLOCK_CHARACTERS].encode())
        chosen = replicas[choose(candidates, matches, tie).index]
        return [[chosen], [replica for replica in candidate_replicas if replica is not chosen]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._index.note(self._slot(replica_id), blocks_of(_prompt(pending_request)))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._slots.pop(replica_id, None)

    def _load(self, replica: ReplicaID) -> int:
        return self._replica_queue_len_cache.get(replica) or 0


def _prompt(request: PendingRequest | None) -> Text:
    call = request.args[0] if request is not None and request.args else None
    return Text(call.prompt if isinstance(call, Call) else "")
