"""What a field that does not decode is reported as: words, without Python's types."""

from __future__ import annotations

import msgspec
import pytest

from gateway.routes.openai_api.wire import ChatRequest
from gateway.server.error_body import validation_error

ROLE = "Invalid value for 'messages.0.role': 'x' is not one of its values; /schema lists them."


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ('{"model": "m", "messages": 1}', "expected a list, got a whole number", "messages"),
        ('{"model": "m", "messages": []}', "expected a list of 1 or more items", "messages"),
        ('{"model": "m", "messages": [{"role": "x"}]}', ROLE, "messages.0.role"),
        ('{"model": "m"}', "Missing required parameter: 'messages'.", "messages"),
        ("[]", "expected an object, got a list", None),
    ],
)
def test_wrong_field_is_named_in_words(body: str, message: str, param: str | None) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.json.decode(body, type=ChatRequest)
    error = validation_error(str(raised.value))
    assert message in error.message and "`" not in error.message
    assert error.param == param
