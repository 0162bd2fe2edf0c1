"""Compiles grammars for one model: first in a sandbox, within limits, then in the worker.

Clients send grammars, and the cost to read or to compile one has no upper bound. A `multipleOf` of a few digits can
take minutes and gigabytes. A chain of a few thousand rules overflows the stack and ends the process. Only the sandbox
reads what a client wrote (trial.py). The worker gets the grammar in llguidance's JSON, and compiles what has compiled
before.
"""

from __future__ import annotations

import threading
from codecs import BOM_UTF8
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.errors import InvalidRequest, Unavailable, UnsupportedParameter
from gateway.generation import Grammar
from gateway.sandbox.process import Sandbox, SandboxUnavailable
from gateway.sandbox.running import BUSY_RETRY_S, Limits, SandboxLate, SandboxLimit
from gateway.worker.grammar.constraint import CompiledGrammar
from gateway.worker.grammar.forced import ForcedText, byte_tokenizer
from gateway.worker.grammar.library import error_of, matcher_of
from gateway.worker.grammar.trial import Trial

MAX_CHARACTERS = 256 * 1024  # of a grammar's source
#: Limits for one grammar in the sandbox. Processor time, because it does not depend on the load of the machine.
LIMITS = Limits(cpu_s=5.0, wall_s=60.0, resident_bytes=768 << 20, address_bytes=1536 << 20)
#: Processor seconds of the first try. Ordinary grammars take 1 to 30 ms.
QUICK_CPU_S = 0.25


class _Tokenizers(NamedTuple):
    own: Any
    bytes: Any


class GrammarCompiler:
    """Thread-safe.

    Args:
        tokenizer_path: tokenizer.json.
        vocab_size: width of the logits.
        end_ids: tokens that end an answer.
        limits: of the sandbox.
    """

    def __init__(
        self, tokenizer_path: Path, vocab_size: int, end_ids: Sequence[int], *, limits: Limits = LIMITS
    ) -> None:
        self._path, self._vocab_size, self._end_ids = tokenizer_path, vocab_size, list(end_ids)
        self._limits = limits
        self._quick = Sandbox("gateway.worker.grammar.trial:open_trial", self._setup, limits)
        self._patient = Sandbox("gateway.worker.grammar.trial:open_trial", self._setup, limits, is_background=True)
        self._tokenizers: _Tokenizers | ValueError | None = None
        self._lock = threading.Lock()  # of the tokenizers
        self._mask_thread = ThreadPoolExecutor(1, "grammar mask")

    def token_bytes(self, token: int) -> bytes:
        """The text of a token. Empty for a token without text, and if the library cannot read the tokenizer."""
        tokenizers = self._load_tokenizers()
        return b"" if isinstance(tokenizers, ValueError) else bytes(tokenizers.own.decode_bytes([token]))

    def start(self) -> None:
        """Start the sandbox, and meanwhile load the tokenizer. Otherwise the first grammar does one after the other,
        and reports it if that fails."""
        sandbox = threading.Thread(target=self._start_sandbox, name="grammar sandbox", daemon=True)
        sandbox.start()
        with suppress(Exception):
            self._load_tokenizers()
        sandbox.join()

    def compile_quickly(self, grammar: Grammar) -> CompiledGrammar | None:
        """As `compile`, with `QUICK_CPU_S` of processor time. Returns None if that is not enough."""
        try:
            return self._compile(grammar, self._quick, self._limits._replace(cpu_s=QUICK_CPU_S))
        except SandboxLimit:
            return None

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile a grammar. This can take seconds, and needs a stack of 32 MiB.

        Raises InvalidRequest with the reason and, in a schema, with the path; Unavailable if there is no process, or if
        other programs leave it too little processor time.
        """
        try:
            self._patient.start()
            return self._compile(grammar, self._patient, self._limits)
        except SandboxUnavailable as error:
            raise _unavailable(error) from None
        except SandboxLate:  # not the grammar's fault, so the error is not cached
            message = (
                f"The machine is too busy: the grammar was not read in {self._limits.wall_s:g} seconds. Try again."
            )
            raise Unavailable(message, retry_after_s=BUSY_RETRY_S) from None
        except SandboxLimit:
            megabytes = self._limits.resident_bytes >> 20
            reason = f"compiling it takes more than {self._limits.cpu_s:g} seconds or {megabytes} MiB"
            raise _refused(grammar, reason) from None

    def _start_sandbox(self) -> None:
        with suppress(SandboxUnavailable):
            self._quick.start()

    def rest(self) -> None:
        """End the process for slow grammars. The next one starts another."""
        self._patient.end()

    def close(self) -> None:
        """End the processes and the mask thread. Compiled grammars cannot be used any more."""
        self._quick.close()
        self._patient.close()
        self._mask_thread.shutdown()

    def _setup(self) -> object:
        return {"size": self._vocab_size, "special_tokens": self._special_tokens()}

    def _special_tokens(self) -> dict[int, str]:
        """The special tokens by id. A Lark grammar can name them as <name>."""
        added = msgspec.json.decode(self._path.read_bytes().removeprefix(BOM_UTF8)).get("added_tokens", [])
        return {token["id"]: token["content"] for token in added}

    def _compile(self, grammar: Grammar, sandbox: Sandbox, limits: Limits) -> CompiledGrammar:
        if len(grammar.source) > MAX_CHARACTERS:
            raise InvalidRequest(f"The grammar is longer than {MAX_CHARACTERS} characters.", param=grammar.param)
        trial = self._try(grammar, sandbox, limits)
        if trial.error:
            raise _refused(grammar, trial.error)
        tokenizers = self._load_tokenizers()
        if isinstance(tokenizers, ValueError):
            raise UnsupportedParameter(f"This model does not support grammars: {tokenizers}.", param=grammar.param)
        matcher = matcher_of(tokenizers.own, trial.grammar)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if error := error_of(matcher):
            raise _refused(grammar, error)
        forced = ForcedText.of(trial.grammar, tokenizers.bytes, tokenizers.own)
        return CompiledGrammar(matcher, forced, tokenizers.own, self._mask_thread, trial.cpu_s)

    def _try(self, grammar: Grammar, sandbox: Sandbox, limits: Limits) -> Trial:
        """Raises SandboxLimit."""
        message = msgspec.msgpack.encode(grammar)
        try:
            return msgspec.msgpack.decode(sandbox.request(message, limits), type=Trial)
        except SandboxUnavailable as error:
            raise _unavailable(error) from None

    def _load_tokenizers(self) -> _Tokenizers | ValueError:
        """ValueError if the library cannot read the tokenizer."""
        with self._lock:
            if self._tokenizers is None:
                try:
                    own = _load_tokenizer(self._path, self._vocab_size, self._end_ids)
                    special = self._special_tokens()
                    self._tokenizers = _Tokenizers(own, byte_tokenizer(own, special, list(own.eos_tokens)))
                except ValueError as error:
                    self._tokenizers = error
            return self._tokenizers


def _refused(grammar: Grammar, reason: str) -> InvalidRequest:
    kind = "JSON schema" if grammar.kind == "json_schema" else f"{grammar.kind} grammar"
    what = f"'{grammar.param}'" if grammar.param == "tools" else f"The {kind}"
    return InvalidRequest(f"{what} cannot be used: {reason}.", param=grammar.param)


def _unavailable(error: SandboxUnavailable) -> Unavailable:
    return Unavailable(f"The process that reads grammars does not work: {error}. Try again.", retry_after_s=1.0)


def _load_tokenizer(path: Path, vocab_size: int, end_ids: list[int]) -> Any:
    """Raises ValueError if the library cannot read the tokenizer."""
    import llguidance

    content = path.read_bytes()
    source = content.removeprefix(BOM_UTF8).decode() if content.startswith(BOM_UTF8) else str(path)
    try:
        return llguidance.LLTokenizer(source, n_vocab=vocab_size, eos_token=end_ids or None)
    except ValueError as error:
        if "vocab size too small" not in str(error):
            raise ValueError("its tokenizer is of an unknown kind") from error
    return llguidance.LLTokenizer(source, eos_token=end_ids or None)  # it has more tokens than the model
