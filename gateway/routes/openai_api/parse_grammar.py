"""Every way a client may say what the answer must look like, as one `Grammar`.

OpenAI's `response_format`, vLLM's `structured_outputs` and older `guided_*` fields, llama.cpp's `json_schema` and
`grammar`. At most one of them may ask for something; an empty string asks for nothing (chat UIs send it).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gateway.errors import InvalidRequest
from gateway.generation import Grammar
from gateway.routes.openai_api.wire import GenerationFields, Json, ResponseFormat, StructuredOutputs
from gateway.server.body import check_depth

Asked = Iterator[tuple[str, Grammar]]  # the field that asks, and for what

_schema_text = msgspec.json.Decoder(dict)


def grammar_of(request: GenerationFields) -> Grammar | None:
    """What constrains the answer. Raises InvalidRequest for an unknown kind, a missing schema, or two constraints."""
    asked = list(_asked(request))
    if len(asked) > 1:
        (first, _), (second, _) = asked[:2]
        raise InvalidRequest(f"'{first}' and '{second}' both constrain the answer: send one of them.", param=second)
    return asked[0][1] if asked else None


def _asked(request: GenerationFields) -> Asked:
    if request.response_format is not None:
        yield from _response_format(request.response_format)
    if request.structured_outputs is not None:
        yield from _structured(request.structured_outputs, "structured_outputs.")
    yield from _structured(_guided(request), "guided_")
    if request.json_schema is not None:
        yield "json_schema", schema_grammar(request.json_schema, "json_schema")
    if request.grammar:
        yield "grammar", Grammar(kind="lark", source=request.grammar, param="grammar")


def _response_format(wanted: ResponseFormat) -> Asked:
    match wanted.type:
        case "text":
            pass
        case "json_object" if wanted.schema is not None:
            yield "response_format", schema_grammar(wanted.schema, "response_format.schema")
        case "json_object":
            yield "response_format", Grammar(kind="json_object")
        case "json_schema":
            yield "response_format", schema_grammar(_required_schema(wanted), "response_format.json_schema.schema")
        case _:
            raise InvalidRequest(
                f"Invalid value for 'response_format.type': {wanted.type!r} is none of 'text', 'json_object' and "
                "'json_schema'.",
                param="response_format.type",
            )


def _required_schema(wanted: ResponseFormat) -> Json:
    if wanted.json_schema is None:
        param = "response_format.json_schema"
    elif wanted.json_schema.schema is None:
        param = "response_format.json_schema.schema"
    else:
        return wanted.json_schema.schema
    raise InvalidRequest(f"Missing required parameter: '{param}'.", param=param)


def _guided(request: GenerationFields) -> StructuredOutputs:
    return StructuredOutputs(
        json=request.guided_json,
        regex=request.guided_regex,
        choice=request.guided_choice,
        grammar=request.guided_grammar,
    )


def _structured(wanted: StructuredOutputs, prefix: str) -> Asked:
    if isinstance(wanted.json, dict):
        yield prefix + "json", schema_grammar(wanted.json, prefix + "json")
    elif wanted.json:
        yield prefix + "json", schema_grammar(_parsed(wanted.json, prefix + "json"), prefix + "json")
    if wanted.regex:
        yield prefix + "regex", Grammar(kind="regex", source=wanted.regex, param=prefix + "regex")
    if wanted.choice is not None:
        yield prefix + "choice", Grammar(kind="lark", source=_one_of(wanted.choice), param=prefix + "choice")
    if wanted.grammar:
        yield prefix + "grammar", Grammar(kind="lark", source=wanted.grammar, param=prefix + "grammar")
    if wanted.json_object:
        yield prefix + "json_object", Grammar(kind="json_object", param=prefix + "json_object")


def _one_of(choices: list[str]) -> str:
    return "start: " + " | ".join(msgspec.json.encode(choice).decode() for choice in choices)


def schema_grammar(schema: Json, param: str) -> Grammar:
    check_depth(schema, param)
    return Grammar(kind="json_schema", source=msgspec.json.encode(schema).decode(), param=param)


def _parsed(text: str, param: str) -> Json:
    try:
        schema: Json = _schema_text.decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"Invalid value for '{param}': the text is no JSON schema: {error}.", param=param
        ) from None
    return schema
