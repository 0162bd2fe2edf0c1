"""The fields of requests for embeddings and rankings become what an `EmbeddingRequest` has."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.embedding import Purpose
from gateway.errors import InvalidRequest
from gateway.routes.embeddings_api.wire import MAX_INPUTS, Document
from gateway.server.ignored import note_ignored

Input = str | tuple[int, ...]

_PURPOSES: dict[str, Purpose] = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
}


def inputs_of(field: str | Sequence[str | int | list[int]], param: str = "input") -> tuple[Input, ...]:
    """The inputs of a request, in order. Raises InvalidRequest; its `param` names the field."""
    match field:
        case str():
            return (_filled(field, param),)
        case [int(), *_]:
            return (_ids(field, param),)
    _check_count(field, param)
    if len({type(item) for item in field}) > 1:
        raise _mixed(param)
    return tuple(_input(item, f"{param}.{index}") for index, item in enumerate(field))


def purpose_of(input_type: str | None) -> Purpose:
    """What the texts are for. An unknown value has no effect and is reported."""
    purpose = _PURPOSES.get((input_type or "").lower(), "")
    if input_type and not purpose:
        note_ignored("input_type", input_type)
    return purpose


def texts_of(documents: Sequence[str | Document]) -> tuple[str, ...]:
    """The texts of the documents of a ranking. Raises InvalidRequest; its `param` names the field."""
    _check_count(documents, "documents")
    texts = (document if isinstance(document, str) else document.text for document in documents)
    return tuple(_filled(text, f"documents.{index}") for index, text in enumerate(texts))


def _check_count(items: Sequence[object], param: str) -> None:
    if len(items) > MAX_INPUTS:
        raise InvalidRequest(f"'{param}' has more than {MAX_INPUTS} items: send several requests.", param=param)


def _input(item: str | int | list[int], param: str) -> Input:
    if isinstance(item, str):
        return _filled(item, param)
    return _ids(item if isinstance(item, list) else [item], param)


def _ids(ids: Sequence[object], param: str) -> tuple[int, ...]:
    numbers = tuple(each for each in ids if isinstance(each, int))
    if len(numbers) < len(ids):
        raise _mixed(param)
    if not numbers:
        raise InvalidRequest(f"'{param}' is an empty list: leave it out.", param=param)
    return numbers


def _filled(text: str, param: str) -> str:
    if not text:
        raise InvalidRequest(f"'{param}' is an empty string: leave it out.", param=param)
    return text


def _mixed(param: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' mixes texts, token ids and lists: send one kind.", param=param)
