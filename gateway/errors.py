"""Every error a user can meet, in one tree.

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
├── BodyTooLarge             413 request_too_large
├── QueueFull                429 rate_limit_exceeded
├── Unavailable              503 service_unavailable
│   ├── BreakerOpen              latency_breaker_open
│   ├── FirstTokenTooLate        first_token_too_late
│   ├── ModelNotReady            model_not_ready
│   └── EngineFailed             engine_failed
├── DeadlineExceeded         504 deadline_exceeded
├── UpstreamFailed           502 upstream_failed
├── ConfigError              (start-up only: exit code 2)
└── BundleError              (a bundle on disk is missing, broken or does not fit)

The class carries what a machine reads (status, type, code); the instance carries what a person reads (message, param,
seconds to wait). Foreign exceptions become one of these in the one module that talks to the foreign library.
"""

from __future__ import annotations


class GatewayError(Exception):
    """Something the gateway says to its user.

    Args:
        message: one sentence, no path of the server in it, ready to be shown.
        param: the request field at fault, in the client's own spelling ("messages.0.content").
        retry_after_s: seconds after which trying again makes sense; rendered as `Retry-After`, rounded up.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    #: Whether the official SDK should retry by itself; None leaves the decision to the SDK (`x-should-retry`).
    should_retry: bool | None = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class PreviousResponseNotFound(InvalidRequest):
    code = "previous_response_not_found"


class Unauthorized(GatewayError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(GatewayError):
    status = 403
    type = "permission_error"
    code = "permission_denied"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"
    asked = ""  # the name that leads nowhere


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTimeout(GatewayError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class QueueFull(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Unavailable(GatewayError):
    status = 503
    type = "service_unavailable_error"
    code = "service_unavailable"


class BreakerOpen(Unavailable):
    code = "latency_breaker_open"
    should_retry = False  # the SDK would otherwise sit and wait for a minute while the caller hopes for an answer


class FirstTokenTooLate(Unavailable):
    code = "first_token_too_late"
    should_retry = False  # the same prompt takes as long the next time


class ModelNotReady(Unavailable):
    code = "model_not_ready"


class EngineFailed(Unavailable):
    code = "engine_failed"


class DeadlineExceeded(GatewayError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    should_retry = False


class UpstreamFailed(GatewayError):
    status = 502
    type = "upstream_error"
    code = "upstream_failed"


class ConfigError(GatewayError):
    """A mistake in config.toml, the environment or the command line; the message names file, table and key."""


class BundleError(GatewayError):
    """A model bundle is missing, truncated, of an unknown kind, or made for another chip; the message says which."""


def error_class(name: str) -> type[GatewayError]:
    """The class of the tree called `name` (that is how an error crosses a process boundary); else EngineFailed."""
    kinds = [GatewayError]
    for kind in kinds:  # grows while it is read: the whole tree
        kinds.extend(kind.__subclasses__())
    return next((kind for kind in kinds if kind.__name__ == name), EngineFailed)
