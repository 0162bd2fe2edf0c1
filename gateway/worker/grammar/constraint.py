"""Answers held to a grammar: which tokens may come next, computed by llguidance while the device computes its logits.

A grammar is compiled once, which may take seconds (see compile_queue.py); each choice then follows a copy of its own.
Where the grammar leaves no choice, the tokens are known before the device is asked: they are the next draft, and the
only ones possible.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llguidance
import msgspec
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.generation import Grammar
from gateway.worker.decoders.base import Logits
from gateway.worker.grammar.compile_sandbox import CompileSandbox, TooMuch, first_step_error, limits
from gateway.worker.grammar.json_schema import OPTIONS, Schema, SchemaError, locate, prepare

MAX_CHARACTERS = 256 * 1024  # of a grammar's source
_MAX_SAID = 200

_PLAINER = (
    (r"^Unimplemented keys: \[(.*)\]$", r"unsupported keywords: \1"),
    (r"^NoExtensionBias$", "no token can follow"),
    (r"^.*(Current row has|Too many items).*$", "it leaves too many ways to go on at one place"),
    (r"^.*too many expressions.*$", "its regular expressions are too complex"),
)

#: In a Lark grammar: what may hide a `%json` that is none, and then the `%json` itself.
_LARK_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/|(?P<json>%json)')


class GrammarConstraint:
    """One choice on its way through a grammar. Implements Constraint.

    Raises InvalidRequest when the grammar needs more than its share (see `compile_sandbox.limits`) to go on, or when no
    token can follow.
    """

    def __init__(self, matcher: Any, tokenizer: Any, beside: ThreadPoolExecutor, param: str) -> None:
        self._matcher, self._beside, self._param = matcher, beside, param
        self._mask = np.zeros((tokenizer.vocab_size + 31) // 32, np.uint32)  # a bit a token
        self._forced: list[int] = []
        self._masking: Future[None] | None = None  # the matcher is not to be touched before it is done
        self._end_ids = frozenset(tokenizer.eos_tokens)
        self._look_ahead()

    @property
    def end_ids(self) -> frozenset[int]:
        return self._end_ids

    @property
    def is_stopped(self) -> bool:
        return not self._forced and self._masking is None

    def restrict(self, logits: Logits) -> None:
        if self._masking is not None:
            self._masking.result()
            self._check()
            excluded = np.unpackbits(np.invert(self._mask).view(np.uint8), count=len(logits), bitorder="little")
            np.putmask(logits, excluded.view(np.bool_), -np.inf)
        else:
            only = self._forced[:1] or list(self._end_ids)
            kept = logits[only]
            logits.fill(-np.inf)
            logits[only] = kept

    def accept(self, token: int) -> None:
        if self._masking is not None:
            self._masking.result()
        self._matcher.consume_token(token)
        self._check()
        self._forced = self._forced[1:]
        if not self._forced:
            self._look_ahead()

    def forced(self) -> Sequence[int]:
        return self._forced

    def _look_ahead(self) -> None:
        """Find out what is forced; where nothing is, begin to compute what is possible."""
        self._masking = None
        if self._matcher.is_stopped():
            return
        self._forced = self._matcher.compute_ff_tokens()
        if not self._forced:
            self._masking = self._beside.submit(_fill, self._mask, self._matcher)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequest(f"The answer cannot go on: {_readable(self._matcher.get_error())}.", param=self._param)


def _fill(mask: NDArray[np.uint32], matcher: Any) -> None:
    """Compute the mask. Holds on to both for as long as that takes: the choice may be cancelled meanwhile."""
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)


class CompiledGrammar:
    """A grammar that any number of choices can follow."""

    def __init__(self, matcher: Any, tokenizer: Any, beside: ThreadPoolExecutor) -> None:
        self._matcher, self._tokenizer, self._beside = matcher, tokenizer, beside

    def constraint(self, param: str) -> GrammarConstraint:
        """At its beginning. `param`: the request's field that asked for the grammar."""
        return GrammarConstraint(self._matcher.deep_copy(), self._tokenizer, self._beside, param)


class GrammarCompiler:
    """Compiles grammars for one model.

    Args:
        tokenizer_path: tokenizer.json; read when the first grammar comes.
        vocab_size: the width of the logits.
        end_ids: the tokens that end an answer.
    """

    def __init__(self, tokenizer_path: Path, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._path, self._vocab_size, self._end_ids = tokenizer_path, vocab_size, list(end_ids)
        self._sandbox = CompileSandbox(vocab_size, lambda: special_tokens(tokenizer_path))
        self._tokenizer: Any = None
        self._beside = ThreadPoolExecutor(1, "grammar mask")
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """May take seconds, and a stack of `compile_sandbox.STACK_BYTES`.

        Raises InvalidRequest, which says what is wrong with the grammar and, in a schema, where.
        """
        if len(grammar.source) > MAX_CHARACTERS:
            raise InvalidRequest(f"The grammar is longer than {MAX_CHARACTERS} characters.", param=grammar.param)
        with self._lock:
            try:
                return self._compile(grammar)
            except (SchemaError, TooMuch) as error:
                kind = "JSON schema" if grammar.kind == "json_schema" else f"{grammar.kind} grammar"
                raise InvalidRequest(f"The {kind} cannot be used: {error}.", param=grammar.param) from None

    def close(self) -> None:
        """End the processes and threads it has started; what was compiled can no longer be used."""
        self._sandbox.close()
        self._beside.shutdown()

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        source = self._translate(grammar)
        if said := _readable(self._sandbox.run(source)):
            raise SchemaError(said)
        tokenizer = self._loaded_tokenizer(grammar.param)
        matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=limits())
        if said := _readable(first_step_error(matcher)):
            raise SchemaError(said)
        return CompiledGrammar(matcher, tokenizer, self._beside)

    def _translate(self, grammar: Grammar) -> str:
        """The grammar in the library's own notation."""
        match grammar.kind:
            case "json_object":
                return _from_schema({"type": "object", "x-guidance": OPTIONS})
            case "json_schema":
                return _from_schema(self._checked(_decoded(grammar.source)))
            case "regex":
                return str(llguidance.LLMatcher.grammar_from_regex(grammar.source))
            case "lark":
                return str(llguidance.LLMatcher.grammar_from_lark(_with_schemas(_lark(grammar.source), self._checked)))

    def _checked(self, schema: Any) -> Schema:
        """The schema prepared. Raises SchemaError with the path of what the library does not take."""
        prepared = prepare(schema)
        if said := self._complaint(prepared):
            raise locate(prepared, said, self._complaint)
        return prepared

    def _complaint(self, schema: Schema) -> str:
        return _readable(self._sandbox.run(_from_schema(schema)))

    def _loaded_tokenizer(self, param: str) -> Any:
        if self._tokenizer is None:
            try:
                self._tokenizer = _load_tokenizer(self._path, self._vocab_size, self._end_ids)
            except ValueError as error:
                raise UnsupportedParameter(f"This model cannot be held to a grammar: {error}.", param=param) from error
        return self._tokenizer


def special_tokens(tokenizer_path: Path) -> dict[int, str]:
    """The tokens that a Lark grammar may name as <name>."""
    added = msgspec.json.decode(tokenizer_path.read_bytes()).get("added_tokens", [])
    return {token["id"]: token["content"] for token in added}


def _load_tokenizer(path: Path, vocab_size: int, end_ids: list[int]) -> Any:
    """Raises ValueError when the library cannot read it."""
    try:
        return llguidance.LLTokenizer(str(path), n_vocab=vocab_size, eos_token=end_ids or None)
    except ValueError as error:
        if "vocab size too small" not in str(error):
            raise ValueError("its tokenizer is of an unknown kind") from error
    return llguidance.LLTokenizer(str(path), eos_token=end_ids or None)  # it has tokens that the model never writes


def _decoded(source: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"it is not JSON: {error}") from None


def _from_schema(schema: Schema) -> str:
    try:
        return str(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    except (ValueError, RecursionError) as error:
        raise SchemaError(str(error)) from None


def _lark(source: str) -> str:
    """The grammar, translated if it is in llama.cpp's notation."""
    if "::=" not in source:
        return source
    try:
        return str(any_to_lark(source))
    except Exception as error:  # GbnfToLarkError is one, and not the only one
        raise SchemaError(_readable(str(error))) from None


def _with_schemas(source: str, change: Callable[[Any], Schema]) -> str:
    """A Lark grammar with each `%json` schema in it changed."""
    parts, done = [], 0
    for found in _LARK_TOKEN.finditer(source):
        if found["json"] and found.start() >= done:
            schema, end = _schema_at(source, found.end())
            parts += [source[done : found.end()], " ", json.dumps(change(schema))]
            done = end
    return "".join([*parts, source[done:]])


def _schema_at(source: str, start: int) -> tuple[Any, int]:
    while source[start : start + 1].isspace():
        start += 1
    try:
        return json.JSONDecoder().raw_decode(source, start)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"what follows %json is not JSON: {error}") from None


def _readable(said: str) -> str:
    """What the library says, in one line, without its state."""
    said = said.split("\n<", 1)[0].strip()
    if found := re.search(r"^error: (.*)", said, re.MULTILINE):
        return f"the regular expression is not supported: {found[1]}"
    line = said.split("\n", 1)[0].split(". Enable", 1)[0].split("; following", 1)[0]
    for pattern, words in _PLAINER:
        line = re.sub(pattern, words, line)
    return (line if len(line) <= _MAX_SAID else line[:_MAX_SAID] + "…").rstrip(".")
