"""Greedy answers of a real model are identical under all combinations of the features that make it faster.

Each device call takes the same time on the loop's clock, so everything that can be drafted is drafted. There are fifty
prompts. In the quick test each of two models answers two of them with 8 combinations. In these, any two switches have
all four combinations of positions; in those of both models together, any three have all eight. In the slow test each
combination answers all of them on both models.

The layout of weights differs by the formats of the file. A tiny model has the minimums and the rounded table that a
model in Q4_K_M has. The slow tests run this format with a billion weights too, with eight prompts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import replace
from tokenizers import Tokenizer

from gateway.activity import Activity
from gateway.builder.build import build_bundle
from gateway.bundles.bundle import load_bundle
from gateway.worker.decoders.base import DecoderSpec, KVCache, Logits
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.decoders.onnx import SessionOptions
from gateway.worker.frames import FromWorker, Submit, Tokens
from gateway.worker.token_loop import TokenLoop
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.token_loop_fixtures import GREEDY, no_grammar

ROOT = Path(__file__).parents[2]
QUESTIONS = """\
What is the capital of France?
Name three fruits and a colour for each of them.
Write a Python function that adds two numbers.
Explain in one sentence why the sky is blue.
Count from one to twenty.
Repeat this word five times: banana.
Translate "good morning" into Spanish.
Write a haiku about the sea.
What is 12 times 12?
List the days of the week.
Who wrote Romeo and Juliet?
Give me a recipe for pancakes.
What is the meaning of HTTP?
Write a SQL query that counts the users of each country.
Is a tomato a fruit or a vegetable?
Summarise: The cat sat on the mat. The dog sat on the cat.
Write the alphabet backwards.
How many legs has a spider?
Write a short letter to a landlord about a broken heater.
What is the largest planet?
Correct the spelling: "I recieved teh mesage yesterday".
Write JSON with the keys name and age for Anna, who is 30.
Make a joke about computers.
What is the boiling point of water in Celsius?
Make a list of five animals that live in Africa.
Explain recursion to a child.
Write a limerick about a cat.
What comes after Monday?
Name the colours of the rainbow.
Write a bash command that lists all files by size.
Who was Ada Lovelace?
What is the opposite of hot?
Describe a sunset in two sentences.
Write a C program that prints hello.
What is photosynthesis?
Give three synonyms for happy.
How do I boil an egg?
What is the square root of 81?
Write a CSS rule that makes paragraphs red.
Where do penguins live?
Write an HTML page with one heading.
What is a prime number?
List ten prime numbers.
Rewrite in capitals: hello world, how are you?
Why do leaves fall in autumn?
Write a slogan for a bakery.
What is the currency of Japan?
Name two inventions of Thomas Edison.
Explain what an API is.
Finish the sentence: Once upon a time
""".splitlines()

Ids = list[int]


class Switches(Struct, frozen=True, kw_only=True):
    threads: int
    prompt_width: int
    prefix_cache: bool
    together: bool
    lookup: bool
    predicted: bool


#: The plain loop: no feature on.
PLAIN = Switches(threads=2, prompt_width=64, prefix_cache=False, together=False, lookup=False, predicted=False)
COMBINATIONS = [
    Switches(
        threads=threads, prompt_width=width, prefix_cache=cache, together=together, lookup=lookup, predicted=predicted
    )
    for threads, width, cache, together, lookup, predicted in product((1, 2), (16, 64), *[(False, True)] * 4)
]


def some_combinations(*, odd: bool) -> list[Switches]:
    """Eight combinations, an orthogonal array of strength 2. `odd`: eight others; together their strength is 3."""
    return [
        switches
        for number, switches in enumerate(COMBINATIONS)
        if [(number & switch_set).bit_count() % 2 for switch_set in (0b010111, 0b101110, 0b011010)] == [0, 0, odd]
    ]


@dataclass
class Narrow:
    """A decoder with a smaller `prompt_width`."""

    inner: CpuDecoder
    prompt_width: int

    def __post_init__(self) -> None:
        self.new_cache, self.close = self.inner.new_cache, self.inner.close
        self.prefill, self.step, self.verify = self.inner.prefill, self.inner.step, self.inner.verify
        self.prefill_together = self.inner.prefill_together

    @property
    def spec(self) -> DecoderSpec:
        return replace(self.inner.spec, prompt_width=self.prompt_width)


@dataclass
class Engine:
    """A decoder, and the caches that each loop over it uses again."""

    decoder: CpuDecoder
    caches: list[KVCache]

    def answers(
        self, switches: Switches, prompts: Sequence[Ids], length: int, expected: Sequence[Ids] = ()
    ) -> list[Ids]:
        """Answer the prompts. `expected`: the answers from which predictions are made."""
        for cache in self.caches:
            cache.truncate(0)
        frames: list[FromWorker] = []
        loop = TokenLoop(
            Narrow(self.decoder, switches.prompt_width),
            self.caches,
            frames.append,
            make_constraint=no_grammar,
            prefix_cache=switches.prefix_cache,
            lookup=switches.lookup,
            activity=Activity(clock=count().__next__),
        )
        for number, ids in enumerate(prompts):
            prediction = edited(expected[number]) if switches.predicted else []
            loop.submit(Submit(id=number, ids=ids, sampling=GREEDY, max_tokens=length, prediction=prediction))
            while not (switches.together or loop.is_idle):
                loop.turn()
        while not loop.is_idle:
            loop.turn()
        tokens = [frame for frame in frames if isinstance(frame, Tokens)]
        return [
            [token for frame in tokens if frame.id == number for token in frame.ids] for number in range(len(prompts))
        ]


def edited(answer: Ids) -> Ids:
    return [*answer[:5], 300, 301, *answer[7:]]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[Ids]:
    return [tokenizer.encode(f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n").ids for q in QUESTIONS]


def made_engines(bundle: Path) -> Iterator[dict[int, Engine]]:
    """An engine for each number of threads."""
    made = {}
    for threads in (1, 2):
        options = SessionOptions(threads=threads)
        decoder = CpuDecoder(load_bundle(bundle), slots=4, context_length=256, options=options)
        made[threads] = Engine(decoder, [decoder.new_cache() for _ in range(4)])
    yield made
    for engine in made.values():
        engine.decoder.close()


@pytest.fixture(scope="module", params=["smollm2", "smollm2_int8"])
def model(request: pytest.FixtureRequest) -> str:
    """`smollm2` has float activations; it is not batch-invariant."""
    return str(request.param)


@pytest.fixture(scope="module")
def engines(request: pytest.FixtureRequest, model: str) -> Iterator[dict[int, Engine]]:
    yield from made_engines(request.getfixturevalue(model))


@pytest.fixture(scope="module")
def mixed_formats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Engine]]:
    folder = tmp_path_factory.mktemp("mixed")
    gguf = write_tiny_gguf(folder / "tiny.gguf", stored_as="Q4_1")
    yield from made_engines(build_bundle(gguf, folder / "bundle", progress=lambda what, share: None))


@pytest.fixture(scope="module")
def billion() -> Iterator[dict[int, Engine]]:
    command = [sys.executable, "benchmarks/random_gguf.py", "1b", "q4_k_m"]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout
    yield from made_engines(ROOT / printed.splitlines()[-1])


def test_each_combination_gives_answers_of_plain_loop(
    engines: dict[int, Engine], prompts: list[Ids], model: str
) -> None:
    assert len(prompts) == 50
    plain = engines[2].answers(PLAIN, prompts[:8], 8)
    for index, switches in enumerate(some_combinations(odd=model == "smollm2")):
        first = 2 * index % len(plain)
        chosen = [first, first + 1, first]  # the first prompt twice, for its cached rows
        expected = [plain[prompt] for prompt in chosen]
        answers = engines[switches.threads].answers(switches, [prompts[prompt] for prompt in chosen], 8, expected)
        assert answers == expected, switches


def test_each_combination_gives_answers_of_plain_loop_with_minimums_as_inputs(
    mixed_formats: dict[int, Engine], prompts: list[Ids]
) -> None:
    decoder = mixed_formats[2].decoder
    assert decoder.spec.is_batch_invariant
    known = [[token % decoder.spec.vocab_size for token in ids] for ids in prompts[:4]]
    plain = mixed_formats[2].answers(PLAIN, known, 8)
    for switches in some_combinations(odd=False):
        assert mixed_formats[switches.threads].answers(switches, known, 8, plain) == plain, switches


@pytest.mark.slow
def test_each_combination_gives_answers_of_plain_loop_at_a_billion_weights(
    billion: dict[int, Engine], prompts: list[Ids]
) -> None:
    plain = billion[2].answers(PLAIN, prompts[:8], 16)
    for switches in some_combinations(odd=True) + some_combinations(odd=False):
        assert billion[switches.threads].answers(switches, prompts[:8], 16, plain) == plain, switches


@pytest.fixture(scope="module")
def long_answers(engines: dict[int, Engine], prompts: list[Ids]) -> list[Ids]:
    return engines[2].answers(PLAIN, prompts, 24)


@pytest.mark.slow
@pytest.mark.parametrize("switches", COMBINATIONS, ids=str)
def test_combination_gives_answers_of_plain_loop_for_fifty_prompts(
    engines: dict[int, Engine], prompts: list[Ids], long_answers: list[Ids], switches: Switches
) -> None:
    assert engines[switches.threads].answers(switches, prompts, 24, long_answers) == long_answers


def test_second_turn_with_cached_rows_gives_answer_of_plain_loop(
    engines: dict[int, Engine], prompts: list[Ids]
) -> None:
    """The rows of the first answer come from single steps. The reference computes them in a prefill."""
    cached = replace(PLAIN, prefix_cache=True)
    (answer,) = engines[2].answers(PLAIN, prompts[:1], 24)
    second = prompts[0] + answer + prompts[1]
    alone = engines[2].answers(PLAIN, [second], 24)
    assert engines[2].answers(cached, [prompts[0], second], 24)[1:] == alone


def test_prompt_lookup_verifies_several_tokens_per_call(engines: dict[int, Engine], tokenizer: Tokenizer) -> None:
    """Shows that the tests above use prompt lookup."""
    text = "one two three four five six seven eight nine ten eleven twelve " * 3
    ids = tokenizer.encode(f"<|im_start|>user\nRepeat: {text}<|im_end|>\n<|im_start|>assistant\n{text}").ids
    calls: list[int] = []
    decoder = engines[2].decoder
    verify = decoder.verify

    def counted(cache: KVCache, ids: Sequence[int]) -> Logits:
        calls.append(len(ids))
        return verify(cache, ids)

    decoder.verify = counted  # type: ignore[method-assign]
    try:
        drafted = engines[2].answers(replace(PLAIN, lookup=True), [ids], 48)
    finally:
        decoder.verify = verify  # type: ignore[method-assign]
    assert max(calls) >= 8
    assert drafted == engines[2].answers(PLAIN, [ids], 48)
