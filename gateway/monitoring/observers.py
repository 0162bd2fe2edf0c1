"""What happens at the end of every request: the list of functions that get its `AnswerRecord`.

There is exactly one record for each request that names a model: answered, cancelled, failed or refused. A request that
the gateway refuses before it looks for a model (a wrong key, wrong JSON) has none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec import Struct

CANCELLED = 499  # nginx's status for a client that disconnected; it is never sent

_log = logging.getLogger(__name__)


class AnswerRecord(Struct, frozen=True, kw_only=True):
    """One request at its end. Times in milliseconds; None: the request ended before this, or it was not measured.

    `limit_ttft_ms` and `limit_per_token_ms` are what the circuit breaker allows this answer, in device time.
    """

    at: float  # when it ended, in seconds since 1970
    id: str
    endpoint: str = ""  # the path of the API: "/v1/chat/completions"
    key: str = ""  # the name of the API key; "": the configuration has no keys
    requested: str  # the model name in the request
    model: str = ""  # the model that answered, or that failed last; "": no model has that name
    ending: str  # stop, length, tool_calls, cancelled, or an error's code
    status: int = 200  # of the HTTP reply; of a stream that failed: the status of the error
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_ms: float | None = None
    predicted_ttft_ms: float | None = None
    ttft_ms: float | None = None  # time to first token, as the client sees it
    per_token_ms: float | None = None  # for each token after the first
    total_ms: float = 0.0
    device_ms: float = 0.0  # inside device calls
    limit_ttft_ms: float | None = None
    limit_per_token_ms: float | None = None
    is_slow: bool = False  # the circuit breaker judged it as slow
    slow_cause: str = ""  # prompt, tokens; queue: it came late but the device was not slow; "": it was not slow
    why: str = ""  # if not the requested model answered: the error code of its refusal
    target: str = ""  # "host:port" of the server that answered, or that failed last; "": a model of this gateway
    target_reason: str = ""  # why it was chosen, see generation.Route
    attempts: int = 0  # servers that were tried; 0: a model of this gateway
    hedged: bool = False  # two servers were tried at the same time
    error: str = ""  # the message of the error that the client gets
    dropped_messages: int = 0  # of the chat, because it did not fit into the context
    traceparent: str = ""  # the header of W3C Trace Context
    has_default_limit: bool = False  # the token limit is not from the request

    @property
    def limit_ms(self) -> float | None:
        """What the circuit breaker allows for the whole answer, in device time."""
        if self.limit_ttft_ms is None:
            return None
        return self.limit_ttft_ms + (self.limit_per_token_ms or 0.0) * max(0, self.completion_tokens - 1)


Observer = Callable[[AnswerRecord], None]


class Observers:
    """The functions that are called at the end of each request, on the event loop: they must return at once.

    observers.add(recent.add)
    """

    def __init__(self) -> None:
        self._observers: list[Observer] = []

    def add(self, observer: Observer) -> None:
        self._observers.append(observer)

    def ended(self, record: AnswerRecord) -> None:
        """Call every observer. One that raises is logged; the answer and the other observers go on."""
        for observer in self._observers:
            try:
                observer(record)
            except Exception as error:
                _log.error("the record of %s was not taken", record.id, exc_info=error)
