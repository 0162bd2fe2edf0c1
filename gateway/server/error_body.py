"""The JSON body and the headers of an error reply, in OpenAI's form; the error for a field that does not decode."""

from __future__ import annotations

import math
import re

from msgspec import Struct

from gateway.errors import LONGEST_QUOTE, GatewayError, InvalidRequest, cut

ROUTE = "x-gateway-route"  # a header of the reply: the server that answers, and why

_LONGEST_WHAT = LONGEST_QUOTE + 30  # of msgspec's message; it can quote a whole value
_WHERE = re.compile(r"(?:`key` in )?`\$\.?(?P<path>[^`]*)`")
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`$")

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "array": "a list",
    "object": "an object",
}


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
    """`Retry-After` and `x-should-retry`, which the official SDK obeys, and `x-gateway-route`."""
    headers = {ROUTE: error.route} if error.route else {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.should_retry is not None:
        headers["x-should-retry"] = str(error.should_retry).lower()
    return headers


def validation_error(message: str) -> InvalidRequest:
    """The error for msgspec's message; its `param` names the field."""
    what, _, where = message.rpartition(" - at ")
    found = _WHERE.fullmatch(where)
    what, path = (what, _dotted(found["path"])) if found else (message, "")
    what = cut(_in_words(what), _LONGEST_WHAT)
    if missing := _MISSING.match(what):
        param = f"{path}.{missing['field']}" if path else missing["field"]
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    if not path:
        return InvalidRequest(f"The request body does not have the form that this endpoint expects: {what.lower()}.")
    return InvalidRequest(f"Invalid value for '{path}': {_lower_first(what)}.", param=path)


def _in_words(what: str) -> str:
    """msgspec's message without the names of Python's types: "Expected a number, got a string"."""

    def kinds(found: re.Match[str]) -> str:
        names = [name for name in found[1].split(" | ") if name != "null"] or ["null"]
        return " or ".join(_KINDS.get(name, name) for name in names)

    what = re.sub(r"`([a-z]+(?: \| [a-z]+)*)`", kinds, what) if what.startswith("Expected `") else what
    what = re.sub(r"^Invalid enum value (.*)$", r"\1 is not one of its values; /schema lists them", what)
    return re.sub(r"(a string|a list) of length (>=|<=|==) (\d+)", _length, what)


def _length(found: re.Match[str]) -> str:
    unit = "characters" if found[1] == "a string" else "items"
    how_many = {">=": f"{found[3]} or more", "<=": f"{found[3]} or fewer", "==": found[3]}[found[2]]
    return f"{found[1]} of {how_many} {unit}"


def _dotted(path: str) -> str:
    """`messages[0].content[1]` as clients write it: `messages.0.content.1`."""
    return re.sub(r"\[(\d+)\]", r".\1", path).replace("[...]", "").lstrip(".")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
