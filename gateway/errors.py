"""All errors that a user can see, in one tree.

GatewayError                 500 server_error
├── InvalidRequest           400 invalid_request_error
│   ├── ContextLengthExceeded    context_length_exceeded
│   ├── UnsupportedParameter     unsupported_parameter
│   └── PreviousResponseNotFound previous_response_not_found
├── Unauthorized             401 invalid_api_key
├── Forbidden                403 permission_denied
├── NotFound                 404 not_found
│   └── ModelNotFound            model_not_found
├── MethodNotAllowed         405 method_not_allowed
├── BodyTimeout              408 request_timeout
├── Conflict                 409 conflict
├── BodyTooLarge             413 request_too_large
├── UnsupportedEncoding      415 unsupported_content_encoding
├── QueueFull                429 rate_limit_exceeded
├── LimitReached             429 rate_limit_exceeded
├── Unavailable              503 service_unavailable
│   ├── BreakerOpen              latency_breaker_open
│   ├── FirstTokenTooLate        first_token_too_late
│   ├── ModelNotReady            model_not_ready
│   │   └── ModelTooLarge            model_not_ready; a retry does not help
│   └── EngineFailed             engine_failed
│       └── DeviceFailed             engine_failed; the only one that counts against a model's device
├── DeadlineExceeded         504 deadline_exceeded
├── UpstreamFailed           502 upstream_failed; counts against the upstream server
│   └── UpstreamRefused          upstream_failed; does not count
├── ConfigError              (not over HTTP: the command ends with exit code 2)
└── BundleError              (not over HTTP: exit code 1, or a model that does not load)
    └── BundleUnfit              the bundle does not fit this machine, whichever engine loads it

The class has status, type and code, for programs. The instance has message, field and seconds to wait, for people.
One module for each library converts the exceptions of that library to these.
"""

from __future__ import annotations

LONGEST_QUOTE = 100  # characters of a value from a request in a message
_LONGEST_PARAM = 200
_LONGEST_MESSAGE = 2000


def quote(value: str) -> str:
    """A value from a request, in quotes and escaped for a message. Every message that repeats one uses this."""
    shown = repr(value[:LONGEST_QUOTE])
    return shown if len(value) <= LONGEST_QUOTE >= len(shown) else shown[:LONGEST_QUOTE] + "...'"


def cut(text: str, longest: int) -> str:
    """The start of `text`, with "..." if it has more than `longest` characters."""
    return text if len(text) <= longest else text[:longest] + "..."


class GatewayError(Exception):
    """An error for the user of the gateway.

    Args:
        message: one sentence for the user. It contains no path of the server. Cut after 2000 characters.
        param: the field of the request that is wrong, as the client spells it ("messages.0.content").
        retry_after_s: seconds until a retry can succeed. The reply has it as `Retry-After`, rounded up.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    #: The header `x-should-retry`: whether the official SDK retries by itself. None: no header, the SDK decides.
    should_retry: bool | None = None
    is_logged = False  # the log has it, so the error handler writes no line
    route = ""  # the header `x-gateway-route`: where a request failed that an engine had begun

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        self.message = cut(message, _LONGEST_MESSAGE)
        super().__init__(self.message)
        self.param = param and cut(param, _LONGEST_PARAM)
        self.retry_after_s = retry_after_s


class InvalidRequest(GatewayError):
    """The client must change the request."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """The prompt leaves no space for a token in the model's context."""

    code = "context_length_exceeded"


class UnsupportedParameter(InvalidRequest):
    """The request sets a parameter, or a value of one, that the gateway or the model's engine does not support."""

    code = "unsupported_parameter"


class PreviousResponseNotFound(InvalidRequest):
    """`previous_response_id` names a response that the gateway does not have."""

    code = "previous_response_not_found"


class Unauthorized(GatewayError):
    """The gateway has API keys, and the request has none of them."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(GatewayError):
    """The host name or the web origin of the request is not allowed."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class NotFound(GatewayError):
    """There is no route or object of that name."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """No model has the name in the request, and no default model is configured."""

    code = "model_not_found"
    requested = ""  # the name in the request


class MethodNotAllowed(GatewayError):
    """The route exists, but not with this HTTP method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTimeout(GatewayError):
    """The client did not send the whole body in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class Conflict(GatewayError):
    """The model cannot do this in its state."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"
    should_retry = False


class BodyTooLarge(GatewayError):
    """The body is larger than `max_body_bytes`."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedEncoding(GatewayError):
    """The request body is compressed with a method that the gateway does not know."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"


class QueueFull(GatewayError):
    """The model runs as many requests as it may, and its admission queue is full."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class LimitReached(GatewayError):
    """The request is above a limit of its API key. Without `retry_after_s` it always is."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    requested = ""  # the model name in the request


class Unavailable(GatewayError):
    """The gateway cannot answer now; the request itself is right."""

    status = 503
    type = "service_unavailable_error"
    code = "service_unavailable"


class BreakerOpen(Unavailable):
    """The model's circuit breaker is open: recent requests were too slow or failed."""

    code = "latency_breaker_open"
    should_retry = False  # the SDK waits up to a minute before a retry; the caller can choose another model at once


class FirstTokenTooLate(Unavailable):
    """The first token did not come within the time limit, and no fallback answered."""

    code = "first_token_too_late"
    should_retry = False  # the same prompt takes the same time again


class ModelNotReady(Unavailable):
    """The model is loading, restarting, closed, or could not be loaded."""

    code = "model_not_ready"


class ModelTooLarge(ModelNotReady):
    """The model needs more memory than all models together may have. The message names the key that changes that."""

    should_retry = False


class EngineFailed(Unavailable):
    """The engine could not run the request now. It says nothing about the device: see DeviceFailed."""

    code = "engine_failed"


class DeviceFailed(EngineFailed):
    """A device call failed, hung, or ended the worker. Only activity.py and the supervisor of a worker make it."""


class DeadlineExceeded(GatewayError):
    """The whole answer took longer than the request's time limit."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    should_retry = False


class UpstreamFailed(GatewayError):
    """An upstream server failed, cannot be reached, or sent something that is not OpenAI's API."""

    status = 502
    type = "upstream_error"
    code = "upstream_failed"
    symptom = "failed"  # in a few words, without a text of that server
    is_loop = False  # that server is this gateway, or leads back to it


class UpstreamRefused(UpstreamFailed):
    """The upstream server answered 4xx: it works, but not for this request, its key or its model."""


class ConfigError(GatewayError):
    """config.toml, the environment or the command line has a mistake. The message names file, table and key."""


class BundleError(GatewayError):
    """A model bundle is missing, truncated, of an unknown layout, or made for another chip. The message says which."""


class BundleUnfit(BundleError):
    """A model bundle is for another chip, a newer runtime or a larger machine. No engine can load it here."""


def error_class(name: str) -> type[GatewayError]:
    """The class with this name, as an error from a worker process names it. GatewayError if there is none."""
    kinds: list[type[GatewayError]] = [GatewayError]
    for kind in kinds:  # the loop adds the subclasses while it runs, so it visits the whole tree
        kinds.extend(kind.__subclasses__())
    return next((kind for kind in kinds if kind.__name__ == name), GatewayError)
