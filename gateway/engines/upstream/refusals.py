"""What another server refuses or breaks, as an error for the client of the gateway."""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import msgspec

from gateway.errors import (
    ContextLengthExceeded,
    GatewayError,
    InvalidRequest,
    QueueFull,
    UpstreamFailed,
    UpstreamRefused,
)

_Failed = TypeVar("_Failed", bound=UpstreamFailed)

_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error", "maximum context length")
_NEVER = ("Request too large", "a retry never succeeds")  # of a 429: OpenAI's words, and those of this gateway
_LONGEST_TEXT = 500  # characters of a message that the server made
_LONGEST_RETRY_S = 3600.0
_SHORTEST_SECRET = 8  # characters; a shorter key, such as "none", is no secret


class Unreachable(UpstreamFailed):
    """No usable connection: it says something of the server, whatever the request is."""


class CutOff(UpstreamRefused):
    """The server broke the connection of a large request, and may accept a shorter one."""


class TooLarge(InvalidRequest):
    """The server refuses a request of this size. Another one may accept it."""


def refusal(name: str, status: int, detail: dict[str, Any], retry_after: str) -> GatewayError:
    """The error for an answer whose status is not a success.

    A mistake in the content of the request is the client's. Everything else is a failure of the server or of the
    configuration.

    Args:
        name: of the model.
        detail: of `error_detail`; empty if the body cannot be read.
        retry_after: the header.
    """
    wait_s = retry_after_s(retry_after)
    match status:
        case 400 | 413 | 422:
            text = " ".join(map(str, (detail.get("code"), detail.get("type"), detail.get("message"))))
            kind = TooLarge if status == 413 else InvalidRequest
            kind = ContextLengthExceeded if any(words in text for words in _TOO_LONG) else kind
            return kind(_message(detail, f"The server behind '{name}' refused the request."), param=_param(detail))
        case 401 | 403:
            error = UpstreamRefused(f"The server behind '{name}' does not accept the key that is configured for it.")
            return _with(error, f"refuses the key (HTTP {status})")
        case 404:
            error = UpstreamRefused(f"The server behind '{name}' does not have that model or endpoint.")
            return _with(error, "does not have the model or endpoint (HTTP 404)")
        case 429 if any(words in str(detail.get("message")) for words in _NEVER):
            return TooLarge(_message(detail, ""), param=_param(detail))
        case 429:
            return QueueFull(f"The server behind '{name}' is busy.", retry_after_s=wait_s or 1.0)
        case 300 | 301 | 302 | 303 | 305 | 306 | 307 | 308:
            return _with(
                UpstreamFailed(
                    f"The server behind '{name}' redirects to another URL, which is not followed. "
                    "Set the model's 'url' to the final one."
                ),
                f"redirects to another URL (HTTP {status})",
            )
        case _:
            return _with(
                failure(name, detail | {"code": status}, f"status {status}", wait_s), f"answers with HTTP {status}"
            )


def failure(name: str, detail: dict[str, Any], otherwise: str, wait_s: float | None = None) -> UpstreamFailed:
    """The server reported a failure: its own, or with a 4xx code one that this request or its key caused."""
    code = detail.get("code")
    kind = UpstreamRefused if isinstance(code, int) and 400 <= code < 500 else UpstreamFailed
    return kind(f"The server behind '{name}' failed: {_message(detail, otherwise)}", retry_after_s=wait_s)


def malformed(name: str) -> UpstreamFailed:
    error = UpstreamFailed(f"The server behind '{name}' answered with something that is not OpenAI's API.")
    return _with(error, "answers with something that is not OpenAI's API")


def cut_off(name: str) -> UpstreamRefused:
    error = CutOff(
        f"The server behind '{name}' broke the connection without an answer to this large request. Try a shorter one."
    )
    return _with(error, "breaks the connection of a large request")


def uncounted(error: UpstreamFailed) -> UpstreamRefused:
    """The same for the client; the breaker of the model does not count it."""
    return _with(UpstreamRefused(error.message, retry_after_s=error.retry_after_s), symptom(error))


def loop(name: str, kind: type[UpstreamFailed] = UpstreamFailed) -> UpstreamFailed:
    error = kind(f"The server behind '{name}' sends requests back to this gateway. Correct the model's 'url'.")
    error.is_loop = True
    return error


def unreachable(name: str) -> UpstreamFailed:
    error = Unreachable(f"The server behind '{name}' cannot be reached, or broke the connection.")
    return _with(error, "cannot be reached, or breaks the connection")


def silent(name: str) -> UpstreamFailed:
    return _with(Unreachable(f"The server behind '{name}' was silent for too long."), "is silent")


def too_large(name: str) -> UpstreamFailed:
    error = UpstreamFailed(f"The server behind '{name}' sent a longer answer than the gateway accepts.")
    return _with(error, "sends a longer answer than the gateway accepts")


def ended() -> UpstreamFailed:
    return _with(UpstreamFailed("The server ended its answer in the middle."), "ends an answer in the middle")


def symptom(error: GatewayError) -> str:
    """What the server did, in a few words for the log, without its own text."""
    match error:
        case QueueFull():
            return "is busy (HTTP 429)"
        case ContextLengthExceeded() | TooLarge():
            return "refuses a request for its length"
        case UpstreamFailed():
            return error.symptom
    return "refuses a request"


def _with(error: _Failed, symptom: str) -> _Failed:
    error.symptom = symptom
    return error


def error_detail(body: bytes | dict[str, Any] | str, secret: str) -> dict[str, Any]:
    """The error object in the forms that servers use: {"error": {…}}, {"error": "…"}, {"message": …}, {"detail": …}.

    Args:
        secret: the key of the gateway for the server, which some servers repeat. It is replaced in every text.
    """
    found: Any = body
    if isinstance(body, bytes):
        try:
            found = msgspec.json.decode(body)
        except (ValueError, RecursionError):
            return {}
    for key in ("error", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    detail = {"message": found} if isinstance(found, str) else found if isinstance(found, dict) else {}
    if len(secret) < _SHORTEST_SECRET:
        return detail
    return {key: value.replace(secret, "***") if isinstance(value, str) else value for key, value in detail.items()}


def _message(detail: dict[str, Any], otherwise: str) -> str:
    text = detail.get("message")
    return (_printable(text, _LONGEST_TEXT) if isinstance(text, str) else "") or otherwise


def _param(detail: dict[str, Any]) -> str | None:
    param = detail.get("param")
    return _printable(param, 100) if isinstance(param, str) else None


def _printable(text: str, length: int) -> str:
    """One line without control characters."""
    line = " ".join(text[: 4 * length].split())
    return "".join(char if char.isprintable() else "\ufffd" for char in line)[:length]


def retry_after_s(text: str) -> float | None:
    """The seconds of `Retry-After`, which is a number or a date; None if it is neither."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
        seconds = max(0.0, seconds)
    if math.isnan(seconds) or seconds < 0:
        return None
    return min(seconds, _LONGEST_RETRY_S)
