"""Forced tokens are those of the library, and finding them has a limit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import pytest

from gateway.generation import Grammar
from gateway.text.tokens import TextTokenizer
from gateway.worker.grammar.compiler import GrammarCompiler
from gateway.worker.grammar.forced import MAX_BYTES, ForcedText, byte_tokenizer
from gateway.worker.grammar.library import matcher_of
from gateway.worker.grammar.translate import translate
from tests.support.structured import SCHEMAS, lark, regex, schema_grammar
from tests.support.tiny import VOCABULARY

GRAMMARS = {
    **{name: schema_grammar(schema) for name, schema in SCHEMAS.items()},
    "special": lark('start: ("x"|"y") <|im_start|> "{abc" <[300]> "d" <|im_end|>'),
    "end": lark('start: ("x"|"y") "hello world"'),
    "unicode": lark('start: ("x"|"y") "日本語 🙂 été" /[a-z]/'),
    "calls": lark('start: "<tool_call>" "\\n" call "\\n" "</tool_call>"\ncall: "{" ("a" | "b") "}"'),
}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Any:
    return llguidance.LLTokenizer(str(tokenizer_path), n_vocab=VOCABULARY, eos_token=[2, 0])


@pytest.fixture(scope="module")
def over_bytes(tokenizer: Any) -> Any:
    return byte_tokenizer(tokenizer, {1: "<|im_start|>", 2: "<|im_end|>"}, [2, 0])


def possible(matcher: Any) -> list[int]:
    mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    return list(map(int, np.flatnonzero(np.unpackbits(mask, bitorder="little"))))


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
def test_forced_text_begins_as_the_library_says(grammar: Grammar, tokenizer: Any, over_bytes: Any) -> None:
    """The run can be longer or shorter by the tokens at its end, which the text after it could change."""
    source = translate(grammar, lambda _: "")
    draw = random.Random(grammar.source)
    for _ in range(5):
        matcher, forced = matcher_of(tokenizer, source), ForcedText.of(source, over_bytes, tokenizer)
        reference = matcher_of(tokenizer, source.replace('no_forcing\\": true', 'no_forcing\\": false'))
        for _ in range(80):
            if matcher.is_stopped():
                break
            expected, found = reference.compute_ff_tokens(), forced.tokens(matcher)
            shorter = min(len(expected), len(found))
            assert expected[:shorter] == found[:shorter]
            assert len(found) >= len(expected) - 1
            token = found[0] if found else draw.choice(possible(matcher))
            if token in (2, 0):
                break
            assert matcher.consume_token(token) and reference.consume_token(token)
            forced.accept(token)
            assert not forced._matcher.is_error()


@pytest.mark.parametrize(
    "source",
    [
        'start: A r\nA: "a" | "b"\nr: s s s s s s s s s s s s s s s s\ns: t t t t t t t t t t t t t t t t\nt: "'
        + "xyxz" * 2500
        + '"',
        'start: A r\nA: "a" | "b"\nr: /(xyxz){10000}/ /(xy){10000}/',
    ],
    ids=["literals", "expressions"],
)
def test_run_of_forced_text_is_bounded(grammars: GrammarCompiler, tokens: TextTokenizer, source: str) -> None:
    """The library's own function needs seconds and gigabytes for the first of these grammars."""
    constraint = grammars.compile(lark(source)).constraint("p")
    constraint.restrict(np.zeros(VOCABULARY, np.float32))
    constraint.accept(tokens.encode("a")[0])
    text = ""
    for _ in range(2000):
        run = list(constraint.forced())
        assert len(run) <= MAX_BYTES
        logits = np.zeros(VOCABULARY, np.float32)
        constraint.restrict(logits)
        token = run[0] if run else int(logits.argmax())
        constraint.accept(token)
        text += tokens.decode([token])
    assert text.startswith("xyxz" * 500)


@pytest.mark.parametrize("own", ["", '%llguidance {"no_forcing": false}', "// comment", "# comment"])
def test_client_cannot_turn_the_librarys_forcing_on(tokenizer: Any, own: str) -> None:
    for source in (f'start: "forced"\n{own}', f'{own}\nstart: "forced"'):
        matcher = matcher_of(tokenizer, translate(lark(source), lambda _: ""))
        assert not matcher.is_error() and matcher.compute_ff_tokens() == []


def test_choices_do_not_share_a_position(grammars: GrammarCompiler, tokens: TextTokenizer) -> None:
    compiled = grammars.compile(regex("(a|b)cc|ddd"))
    first, second = compiled.constraint("p"), compiled.constraint("p")
    first.restrict(np.zeros(VOCABULARY, np.float32))
    first.accept(tokens.encode("d")[0])
    assert tokens.decode(list(first.forced())) == "dd" and second.forced() == []
