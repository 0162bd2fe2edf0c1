"""Additional checks of the fuzzer, which loads this file. See tests/routes/test_openapi.py."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import msgspec
import schemathesis

from gateway.app import HANDLERS

DECODERS = {
    path: msgspec.json.Decoder(operation.body)
    for handler in HANDLERS
    for path in handler.paths
    if (operation := next(iter(handler.opt["openapi"].values()))).body is not None
}


#: By path and kind of body. To compile one takes longer than all other work for a case.
_validators: dict[tuple[str, str], Any] = {}


def is_valid(value: Any, kind: str, schema: Any, case: schemathesis.Case) -> bool:
    key = (case.operation.path, kind)
    if key not in _validators:
        whole = {**schema, "components": case.operation.schema.raw_schema["components"]}
        _validators[key] = jsonschema_rs.validator_for(whole)
    return bool(_validators[key].is_valid(value))


@schemathesis.check
def schema_and_decoder_agree(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """The decoder accepts a body if the schema does, and the gateway refuses a body if the schema does.

    One exception: JSON Schema accepts 8.0 as an integer, the gateway does not.
    """
    decoder = DECODERS.get(case.operation.path)
    body = response.request.body
    try:
        value = json.loads(body or b"")
    except ValueError:
        return
    if decoder is None or body is None:
        return
    documented = case.operation.definition.raw["requestBody"]["content"]["application/json"]["schema"]
    if is_valid(value, "request", documented, case):
        try:
            decoder.decode(body)
        except msgspec.ValidationError as error:
            if "Expected `int" not in str(error) or "got `float`" not in str(error):
                raise AssertionError(f"the schema accepts a body that the gateway refuses: {error}") from None
    else:
        assert 400 <= response.status_code < 500, "the gateway accepts a body that its schema refuses"


@schemathesis.check
def lines_match_their_schema(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """The fuzzer itself checks the events of a stream, but not lines of JSON."""
    [media_type, *_] = response.headers.get("content-type", [""])
    if media_type == "application/x-ndjson":
        line = case.operation.definition.raw["responses"]["200"]["content"][media_type]["itemSchema"]
        for text in response.text.splitlines():
            assert is_valid(json.loads(text), "line", line, case), f"a line does not match its schema: {text}"
