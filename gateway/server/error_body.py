"""The JSON body and the headers of an error reply, in OpenAI's form."""

from __future__ import annotations

import math

from msgspec import Struct

from gateway.errors import GatewayError


class ErrorDetail(Struct, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Struct, kw_only=True):
    error: ErrorDetail


def error_body(error: GatewayError) -> ErrorBody:
    return ErrorBody(error=ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code))


def error_headers(error: GatewayError) -> dict[str, str]:
    """`Retry-After` and `x-should-retry`. The official SDK obeys both."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.should_retry is not None:
        headers["x-should-retry"] = str(error.should_retry).lower()
    return headers
