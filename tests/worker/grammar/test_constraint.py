"""Grammars over a real vocabulary: possible tokens, forced tokens, and refused grammars."""

from __future__ import annotations

import gc
import json
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import UnsupportedParameter
from gateway.generation import Grammar
from gateway.text.tokens import TextTokenizer
from gateway.worker.decoders.base import Logits
from gateway.worker.grammar.compiler import GrammarCompiler
from gateway.worker.grammar.constraint import GrammarConstraint
from tests.support.structured import SCHEMAS, Schema, faults, lark, regex, schema_grammar
from tests.support.tiny import VOCABULARY

ENDS = (2, 0)  # of the tiny model
WORD: Schema = {"type": "string", "pattern": "^[ab]{1,3}$"}

#: Further schemas that the library takes and must enforce.
CORNERS: list[Schema | bool] = [
    True,
    {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"x": WORD},
        "items": {"$ref": "#/definitions/x"},
        "maxItems": 2,
    },
    {"type": ["string", "null"], "maxLength": 5},
    {"type": "object", "patternProperties": {"^x": {"type": "integer"}, "^y": WORD}, "additionalProperties": False},
    {"properties": {"a": {"type": "integer"}, "bb": WORD}, "additionalProperties": {"type": "null"}, "type": "object"},
    {"type": "object", "required": ["zz", "a"], "properties": {"a": WORD}, "maxProperties": 2},
    {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": "a"}, "v": WORD}, "required": ["k"]},
            {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k", "w"]},
        ]
    },
    {
        "$ref": "#/$defs/a",
        "properties": {"q": WORD},
        "required": ["q"],
        "$defs": {"a": {"properties": {"p": WORD}, "type": "object"}},
    },
    {"type": "string", "format": "date", "pattern": "^20", "minLength": 3},
    {"type": "string", "pattern": "a.b", "maxLength": 6},
    {"type": "string", "pattern": r"^(\d+|\w\s)$", "maxLength": 5},
    {"type": "array", "prefixItems": [WORD, {"type": "integer"}], "items": {"type": "boolean"}, "maxItems": 4},
    {"anyOf": [{"const": [1, {"a": None}]}, {"const": "x"}, {"type": "integer", "minimum": 5, "maximum": 5}]},
    {"enum": [{"a": 1, "b": [2, "c"]}, [], {}, "", 0, -1, -0.5, 1e10, 1.25e-3]},
    {"type": "number", "exclusiveMinimum": -1.5, "exclusiveMaximum": 1.5},
    {"type": "integer", "minimum": -1234, "maximum": 98765, "multipleOf": 7},
    {"type": "number", "multipleOf": 0.25, "minimum": 1, "maximum": 20},
    {"properties": {'a"b': WORD, "c\\d": WORD, "e\nf": WORD}, "additionalProperties": {"type": "null"}},
    {"type": "object", "minProperties": 1, "properties": {"a": WORD, "b": WORD}, "additionalProperties": False},
    {"type": "object", "minProperties": 3, "properties": {"a": WORD, "b": WORD}, "required": ["a", "b"]},
    {"type": "object", "properties": {"a": False, "b": WORD}},
    *({"type": "string", "format": name, "maxLength": 60} for name in ("uri", "iri-reference", "idn-email", "uuid")),
    *({"type": "string", "format": name, "maxLength": 60} for name in ("json-pointer", "relative-json-pointer")),
]


class Random:
    """Random logits. After `patience` tokens, closing characters become likely."""

    def __init__(self, tokens: TextTokenizer, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._closing = [i for i in range(VOCABULARY) if set(tokens.token_bytes(i)) & set(b'"}]')]

    def logits(self, patience: int, written: int) -> Logits:
        logits = self._random.standard_normal(VOCABULARY).astype(np.float32) * 3
        logits[self._closing] += 6 if written > patience else 0
        return logits


def write(constraint: GrammarConstraint, model: Random, patience: int, limit: int = 400) -> tuple[list[int], bool]:
    """The tokens of an answer, and True if it is complete."""
    ids: list[int] = []
    while not constraint.is_stopped and len(ids) < limit:
        logits = model.logits(patience, len(ids))
        constraint.restrict(logits)
        token = int(logits.argmax())
        assert np.isfinite(logits[token])
        if token in ENDS:
            return ids, True
        constraint.accept(token)
        ids.append(token)
    return ids, constraint.is_stopped


def possible(constraint: GrammarConstraint) -> set[int]:
    logits = np.zeros(VOCABULARY, np.float32)
    constraint.restrict(logits)
    return set(np.flatnonzero(np.isfinite(logits)).tolist())


def follow(constraint: GrammarConstraint, ids: list[int]) -> None:
    for token in ids:
        assert token in possible(constraint)
        constraint.accept(token)


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), *CORNERS], ids=lambda schema: json.dumps(schema)[:60])
def test_complete_answer_validates_for_random_logits(
    grammars: GrammarCompiler, tokens: TextTokenizer, schema: Schema | bool
) -> None:
    compiled, model = grammars.compile(schema_grammar(schema)), Random(tokens, 1)
    complete = 0
    for patience in range(0, 40, 4):
        ids, is_complete = write(compiled.constraint("p"), model, patience)
        complete += is_complete
        text = tokens.decode(ids)
        assert not is_complete or faults(schema, text) == [], text
    assert complete > 5


def test_json_object_grammar_permits_any_object(grammars: GrammarCompiler, tokens: TextTokenizer) -> None:
    compiled, model = grammars.compile(Grammar(kind="json_object")), Random(tokens, 2)
    found = [write(compiled.constraint("p"), model, patience) for patience in range(30)]
    texts = [tokens.decode(ids) for ids, is_complete in found if is_complete]
    assert len(texts) > 20 and all(isinstance(json.loads(text), dict) for text in texts)
    follow(compiled.constraint("p"), tokens.encode('{"a": [1, {"b": null, "c": []}], "d": "\\n"}'))


def test_json_whitespace_is_fixed(grammars: GrammarCompiler, tokens: TextTokenizer) -> None:
    """One space after a comma or a colon, and none elsewhere outside strings."""
    constraint = grammars.compile(Grammar(kind="json_object")).constraint("p")
    blanks = {i for i in range(VOCABULARY) if tokens.token_bytes(i)[:1].isspace()}
    for character in '{"": [1, {"": 2}], "": [[], -3]}':
        next_ = possible(constraint)
        if character == " ":
            assert next_ & blanks == next_
        elif character not in '"123':
            assert not next_ & blanks
        (token,) = tokens.encode(character)
        constraint.accept(token)


def test_special_token_matches_only_by_name(grammars: GrammarCompiler) -> None:
    assert 1 not in possible(grammars.compile(regex("(?s:.*)")).constraint("p"))
    assert possible(grammars.compile(lark("start: <|im_start|>")).constraint("p")) == {1}


def test_end_tokens_are_possible_where_grammar_can_end(grammars: GrammarCompiler, tokens: TextTokenizer) -> None:
    constraint = grammars.compile(regex("[0-9]{1,3}")).constraint("p")
    assert not possible(constraint) & set(ENDS)
    follow(constraint, tokens.encode("1"))
    assert set(ENDS) < possible(constraint) and not constraint.is_stopped
    follow(constraint, tokens.encode("23"))
    assert constraint.is_stopped and possible(constraint) == set(ENDS)


def test_empty_regex_permits_only_end_tokens(grammars: GrammarCompiler) -> None:
    constraint = grammars.compile(regex("")).constraint("p")
    assert possible(constraint) == set(ENDS)


def test_forced_tokens_are_only_possible_ones(grammars: GrammarCompiler, tokens: TextTokenizer) -> None:
    constraint = grammars.compile(schema_grammar({"const": {"name": ["value"]}})).constraint("p")
    ids: list[int] = []
    while not constraint.is_stopped:
        assert possible(constraint) == {constraint.forced()[0]}
        ids.append(constraint.forced()[0])
        constraint.accept(ids[-1])
    assert tokens.decode(ids) == '{"name": ["value"]}'
    assert len(ids) < len('{"name": ["value"]}')  # tokens of the tokenizer, not bytes


def test_logits_wider_than_tokenizer_are_masked(tokenizer_path: Path) -> None:
    compiler = GrammarCompiler(tokenizer_path, VOCABULARY + 77, ENDS)
    logits = np.zeros(VOCABULARY + 77, np.float32)
    compiler.compile(regex("(?s:.*)")).constraint("p").restrict(logits)
    assert np.isfinite(logits[:VOCABULARY]).sum() > 250 and not np.isfinite(logits[VOCABULARY:]).any()
    compiler.close()


def test_logits_narrower_than_tokenizer_are_masked(tokenizer_path: Path) -> None:
    compiler = GrammarCompiler(tokenizer_path, VOCABULARY - 7, ENDS)
    logits = np.zeros(VOCABULARY - 7, np.float32)
    compiler.compile(regex("(?s:.*)")).constraint("p").restrict(logits)
    assert np.isfinite(logits).sum() > 250
    compiler.close()


def test_unreadable_tokenizer_is_unsupported_parameter(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"added_tokens": []}', encoding="utf-8")
    compiler = GrammarCompiler(path, VOCABULARY, ENDS)
    with pytest.raises(UnsupportedParameter, match="its tokenizer is of an unknown kind") as caught:
        compiler.compile(regex("a"))
    assert caught.value.param == "p"
    compiler.close()


def test_mask_memory_outlives_discarded_constraint(grammars: GrammarCompiler) -> None:
    """Another thread writes the mask into memory that must not be freed."""
    compiled = grammars.compile(schema_grammar(SCHEMAS["report"]))
    for _ in range(300):
        compiled.constraint("p")
    gc.collect()


def test_threads_can_compile_at_same_time(grammars: GrammarCompiler) -> None:
    errors: list[Exception] = []

    def work(index: int) -> None:
        try:
            possible(grammars.compile(regex(f"[ab]{{{index}}}")).constraint("p"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


class TestLark:
    def test_schema_inside_lark_is_enforced(self, grammars: GrammarCompiler, tokens: TextTokenizer) -> None:
        schema = {"properties": {"a": {"type": "string", "format": "date"}}, "required": ["a"]}
        grammar = lark(f'start: "<" %json {json.dumps(schema)} ">" // %json')
        ids, is_complete = write(grammars.compile(grammar).constraint("p"), Random(tokens, 3), 10)
        text = tokens.decode(ids)
        assert is_complete and text[0] == "<" and text[-1] == ">"
        value = json.loads(text[1:-1])
        assert value.keys() == {"a"} and text[1:-1] == json.dumps(value)

    def test_percent_json_inside_string_is_text(self, grammars: GrammarCompiler, tokens: TextTokenizer) -> None:
        constraint = grammars.compile(lark(r'start: "%json {" /%json x?/ "\"%json"')).constraint("p")
        follow(constraint, tokens.encode('%json {%json x"%json'))
        assert constraint.is_stopped

    def test_gbnf_grammar_is_translated(self, grammars: GrammarCompiler, tokens: TextTokenizer) -> None:
        grammar = lark('root ::= "[" item ("," ws item)* "]"\nitem ::= [0-9]+ | "x"{2}\nws ::= " "?')
        constraint = grammars.compile(grammar).constraint("p")
        follow(constraint, tokens.encode("[12, 3,xx]"))
        assert constraint.is_stopped


def test_byte_order_mark_of_the_tokenizer_is_skipped(tokenizer_path: Path, tmp_path: Path) -> None:
    marked = tmp_path / "tokenizer.json"
    marked.write_bytes(b"\xef\xbb\xbf" + tokenizer_path.read_bytes())
    with closing(GrammarCompiler(marked, VOCABULARY, (2, 0))) as compiler:
        assert compiler.compile(Grammar(kind="regex", source="a+"))
