"""All request fields that constrain the answer (constrained decoding) become one `Grammar`.

OpenAI's `response_format`, vLLM's `structured_outputs` and older `guided_*` fields, llama.cpp's `json_schema` and
`grammar`. A request may use one of them. An empty string counts as absent, because chat UIs send it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gateway.errors import InvalidRequest
from gateway.generation import Grammar
from gateway.routes.openai_api.wire import GenerationFields, ResponseFormat
from gateway.routes.parse import required, schema_grammar, unknown_format
from gateway.routes.wire import Json

Constraints = Iterator[tuple[str, Grammar]]  # the field's name, and its grammar

_schema_text = msgspec.json.Decoder(dict)


def grammar_of(request: GenerationFields) -> Grammar | None:
    """Raises InvalidRequest for an unknown format, a missing schema, or two constraints."""
    found = list(_constraints(request))
    if len(found) > 1:
        (first, _), (second, _) = found[:2]
        raise InvalidRequest(f"'{first}' and '{second}' both constrain the answer: send one of them.", param=second)
    return found[0][1] if found else None


def _constraints(request: GenerationFields) -> Constraints:
    if request.response_format is not None:
        yield from _response_format(request.response_format)
    if (outputs := request.structured_outputs) is not None:
        yield from _structured("structured_outputs.", outputs.json, outputs.regex, outputs.choice, outputs.grammar)
        if outputs.json_object:
            param = "structured_outputs.json_object"
            yield param, Grammar(kind="json_object", param=param)
    yield from _structured(
        "guided_", request.guided_json, request.guided_regex, request.guided_choice, request.guided_grammar
    )
    if request.json_schema is not None:
        yield "json_schema", schema_grammar(request.json_schema, "json_schema")
    if request.grammar:
        yield "grammar", Grammar(kind="lark", source=request.grammar, param="grammar")


def _response_format(format: ResponseFormat) -> Constraints:
    match format.type:
        case "text":
            pass
        case "json_object" if format.schema is not None:
            yield "response_format", schema_grammar(format.schema, "response_format.schema")
        case "json_object":
            yield "response_format", Grammar(kind="json_object")
        case "json_schema":
            json_schema = required(format.json_schema, "response_format.json_schema")
            param = "response_format.json_schema.schema"
            yield (
                "response_format",
                schema_grammar(required(json_schema.schema, param), param, is_strict=bool(json_schema.strict)),
            )
        case kind:
            raise unknown_format(kind, "response_format.type")


def _structured(
    prefix: str, json: Json | str | None, regex: str | None, choice: list[str] | None, grammar: str | None
) -> Constraints:
    """vLLM's constraints. `prefix`: what precedes each name in the request."""
    if json or isinstance(json, dict):
        param = prefix + "json"
        yield param, schema_grammar(json if isinstance(json, dict) else _parsed(json, param), param)
    if regex:
        yield prefix + "regex", Grammar(kind="regex", source=regex, param=prefix + "regex")
    if choice is not None:
        yield prefix + "choice", Grammar(kind="lark", source=_one_of(choice), param=prefix + "choice")
    if grammar:
        yield prefix + "grammar", Grammar(kind="lark", source=grammar, param=prefix + "grammar")


def _one_of(choices: list[str]) -> str:
    return "start: " + " | ".join(msgspec.json.encode(choice).decode() for choice in choices)


def _parsed(text: str, param: str) -> Json:
    try:
        schema: Json = _schema_text.decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"Invalid value for '{param}': the text is not a JSON schema: {error}.", param=param
        ) from None
    return schema
