"""The child's side of compiler.py: reads a grammar and compiles it once. Nothing in it can end as an exception."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from gateway.generation import Grammar
from gateway.worker.grammar.forced import MAX_BYTES
from gateway.worker.grammar.library import ByteVocabulary, error_of, matcher_of, only_token
from gateway.worker.grammar.schema_shape import SchemaError

if TYPE_CHECKING:
    from gateway.worker.grammar.translate import CompileError


class Trial(Struct, frozen=True):
    """A grammar in llguidance's JSON, or the reason why it cannot be used."""

    grammar: str = ""
    error: str = ""
    cpu_s: float = 0.0  # what reading and compiling took


def open_trial(setup: Any) -> tuple[bytes, Callable[[bytes], bytes]]:
    """For `Sandbox`. The setup has the size of the vocabulary and the special tokens by id."""
    import gateway.worker.grammar.translate  # noqa: F401 -- here, and not with the first grammar

    special_tokens = {int(index): name for index, name in setup["special_tokens"].items()}
    tokenizer = ByteVocabulary(setup["size"], special_tokens).tokenizer()

    def handle(message: bytes) -> bytes:
        grammar = msgspec.msgpack.decode(message, type=Grammar)
        return msgspec.msgpack.encode(read(grammar, lambda source: first_error(tokenizer, source)))

    return b"", handle


def read(grammar: Grammar, compile_error: CompileError) -> Trial:
    """Never raises: what no check foresaw is an error of this grammar too."""
    from gateway.worker.grammar.translate import translate  # the worker imports this module, and not the library

    started = time.process_time()
    try:
        return Trial(translate(grammar, compile_error), cpu_s=time.process_time() - started)
    except SchemaError as error:
        message = str(error)
    except BaseException as error:  # a panic of the library is no Exception
        message = f"it cannot be read ({type(error).__name__})"
    return Trial(error=message.encode("utf-8", "replace").decode(), cpu_s=time.process_time() - started)


def first_error(tokenizer: Any, grammar: str) -> str:
    """The library's message, also if an answer cannot start or cannot pass its forced beginning."""
    matcher = matcher_of(tokenizer, grammar)
    for _ in range(MAX_BYTES):
        only = only_token(matcher)
        if only is None or matcher.is_stopped():
            break
        matcher.consume_token(only)
    return error_of(matcher)
