"""Constrained decoding with llguidance: the mask of possible tokens, computed while the device computes logits.

A grammar is compiled once, which can take seconds (see compile_queue.py). Each choice then follows its own copy. Where
only one token is possible, the forced tokens are known before the device call: they are the next draft.

This module converts the errors of llguidance to GatewayErrors.
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
from gateway.worker.grammar.compile_sandbox import CompileLimitError, CompileSandbox, first_step_error, limits
from gateway.worker.grammar.json_schema import OPTIONS, Schema, SchemaError, locate, prepare

MAX_CHARACTERS = 256 * 1024  # of a grammar's source
_MAX_MESSAGE = 200

#: (the library's message, our wording)
_REWORDED = (
    (r"^Unimplemented keys: \[(.*)\]$", r"unsupported keywords: \1"),
    (r"^NoExtensionBias$", "no token can follow"),
    (r"^.*(Current row has|Too many items).*$", "it has too many possible continuations at one position"),
    (r"^.*too many expressions.*$", "its regular expressions are too complex"),
)

#: In a Lark grammar: strings, comments and regular expressions, which can contain `%json` as text; and `%json`.
_LARK_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/|(?P<json>%json)')


class GrammarConstraint:
    """The position of one choice in a grammar. Implements Constraint.

    Its methods raise InvalidRequest if the grammar exceeds a limit (see `compile_sandbox.limits`) or if no token can
    follow.

    Args:
        mask_thread: computes the masks.
        param: the field of the request with the grammar, for error messages.
    """

    def __init__(self, matcher: Any, tokenizer: Any, mask_thread: ThreadPoolExecutor, param: str) -> None:
        self._matcher, self._mask_thread, self._param = matcher, mask_thread, param
        self._mask = np.zeros((tokenizer.vocab_size + 31) // 32, np.uint32)  # one bit for each token
        self._forced: list[int] = []
        self._masking: Future[None] | None = None  # until it is done, only its thread uses the matcher
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
        """Find the forced tokens. If there are none, start to compute the mask."""
        self._masking = None
        if self._matcher.is_stopped():
            return
        self._forced = self._matcher.compute_ff_tokens()
        if not self._forced:
            self._masking = self._mask_thread.submit(_fill, self._mask, self._matcher)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequest(
                f"The answer cannot continue: {_readable(self._matcher.get_error())}.", param=self._param
            )


def _fill(mask: NDArray[np.uint32], matcher: Any) -> None:
    """Compute the mask. The arguments keep both objects alive if the choice is cancelled meanwhile."""
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)


class CompiledGrammar:
    """A compiled grammar, for any number of choices."""

    def __init__(self, matcher: Any, tokenizer: Any, mask_thread: ThreadPoolExecutor) -> None:
        self._matcher, self._tokenizer, self._mask_thread = matcher, tokenizer, mask_thread

    def constraint(self, param: str) -> GrammarConstraint:
        """A constraint at the start of the grammar. `param`: the field of the request with the grammar."""
        return GrammarConstraint(self._matcher.deep_copy(), self._tokenizer, self._mask_thread, param)


class GrammarCompiler:
    """Compiles grammars for one model.

    Args:
        tokenizer_path: tokenizer.json; it is read for the first grammar.
        vocab_size: width of the logits.
        end_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer_path: Path, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._path, self._vocab_size, self._end_ids = tokenizer_path, vocab_size, list(end_ids)
        self._sandbox = CompileSandbox(vocab_size, lambda: special_tokens(tokenizer_path))
        self._tokenizer: Any = None
        self._mask_thread = ThreadPoolExecutor(1, "grammar mask")
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile a grammar. This can take seconds, and needs a stack of `compile_sandbox.STACK_BYTES`.

        Raises InvalidRequest with the reason and, in a schema, with the path.
        """
        if len(grammar.source) > MAX_CHARACTERS:
            raise InvalidRequest(f"The grammar is longer than {MAX_CHARACTERS} characters.", param=grammar.param)
        with self._lock:
            try:
                return self._compile(grammar)
            except (SchemaError, CompileLimitError) as error:
                kind = "JSON schema" if grammar.kind == "json_schema" else f"{grammar.kind} grammar"
                raise InvalidRequest(f"The {kind} cannot be used: {error}.", param=grammar.param) from None

    def close(self) -> None:
        """End the child process and the mask thread. Compiled grammars cannot be used any more."""
        self._sandbox.close()
        self._mask_thread.shutdown()

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        source = self._translate(grammar)
        if message := _readable(self._sandbox.run(source)):
            raise SchemaError(message)
        tokenizer = self._loaded_tokenizer(grammar.param)
        matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=limits())
        if message := _readable(first_step_error(matcher)):
            raise SchemaError(message)
        return CompiledGrammar(matcher, tokenizer, self._mask_thread)

    def _translate(self, grammar: Grammar) -> str:
        """The grammar in the library's format."""
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
        """The schema, prepared. Raises SchemaError with the path of a part that the library refuses."""
        prepared = prepare(schema)
        if message := self._schema_error(prepared):
            raise locate(prepared, message, self._schema_error)
        return prepared

    def _schema_error(self, schema: Schema) -> str:
        return _readable(self._sandbox.run(_from_schema(schema)))

    def _loaded_tokenizer(self, param: str) -> Any:
        if self._tokenizer is None:
            try:
                self._tokenizer = _load_tokenizer(self._path, self._vocab_size, self._end_ids)
            except ValueError as error:
                raise UnsupportedParameter(f"This model does not support grammars: {error}.", param=param) from error
        return self._tokenizer


def special_tokens(tokenizer_path: Path) -> dict[int, str]:
    """The special tokens by id. A Lark grammar can name them as <name>."""
    added = msgspec.json.decode(tokenizer_path.read_bytes()).get("added_tokens", [])
    return {token["id"]: token["content"] for token in added}


def _load_tokenizer(path: Path, vocab_size: int, end_ids: list[int]) -> Any:
    """Raises ValueError if the library cannot read the tokenizer."""
    try:
        return llguidance.LLTokenizer(str(path), n_vocab=vocab_size, eos_token=end_ids or None)
    except ValueError as error:
        if "vocab size too small" not in str(error):
            raise ValueError("its tokenizer is of an unknown kind") from error
    return llguidance.LLTokenizer(str(path), eos_token=end_ids or None)  # it has more tokens than the model


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
    """The grammar in Lark notation; a GBNF grammar (llama.cpp) is translated."""
    if "::=" not in source:
        return source
    try:
        return str(any_to_lark(source))
    except Exception as error:  # GbnfToLarkError and others
        raise SchemaError(_readable(str(error))) from None


def _with_schemas(source: str, change: Callable[[Any], Schema]) -> str:
    """A Lark grammar with `change` applied to each of its `%json` schemas."""
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
        raise SchemaError(f"the text after %json is not JSON: {error}") from None


def _readable(message: str) -> str:
    """The library's message in one line, without the dump of its state."""
    message = message.split("\n<", 1)[0].strip()
    if found := re.search(r"^error: (.*)", message, re.MULTILINE):
        return f"the regular expression is not supported: {found[1]}"
    line = message.split("\n", 1)[0].split(". Enable", 1)[0].split("; following", 1)[0]
    for pattern, wording in _REWORDED:
        line = re.sub(pattern, wording, line)
    return (line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + "…").rstrip(".")
