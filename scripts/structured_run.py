"""Constrained decoding: check a thousand responses with an independent validator, and measure the cost per token.

    python scripts/structured_run.py [--count 1000] [--temperature 1.5] [--max-tokens 256]

Runs 20 nested JSON schemas in turn with the default model, in an environment with the test packages (`scripts/test.py`
makes one). Prints a line for each schema, every response that does not validate, and the time per token with a grammar
and without. Fails if one response is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from msgspec.structs import replace as with_fields

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gateway.builder.fetch import ensure_bundle  # noqa: E402
from gateway.engines.base import Engine  # noqa: E402
from gateway.engines.local.engine import LocalEngine  # noqa: E402
from gateway.generation import Generation, Grammar, Meter, Text  # noqa: E402
from gateway.sampling import Sampling  # noqa: E402
from tests.conftest import MODELS, SMOLLM2  # noqa: E402
from tests.support.engines import events_of  # noqa: E402
from tests.support.structured import SCHEMAS, Answer, answers, request  # noqa: E402

AT_ONCE = 4
ROUNDS = 9
TOKENS = 128
ANY_TEXT = Grammar(kind="lark", source=r"start: /(?s:.*)/")  # the most expensive mask, and no token is forced


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=1.5)
    parser.add_argument("--max-tokens", type=int, default=256)
    arguments = parser.parse_args()
    return asyncio.run(run(arguments.count, arguments.temperature, arguments.max_tokens))


async def run(count: int, temperature: float, max_tokens: int) -> int:
    """Returns the exit code: 1 if a response is wrong."""
    ensure_bundle(SMOLLM2, MODELS, lambda what, share: None)
    engine = LocalEngine("smollm2-135m", with_fields(SMOLLM2, max_sequences=AT_ONCE), MODELS)
    await engine.start()
    try:
        started = time.perf_counter()
        found = await answers(engine, count, at_once=AT_ONCE, temperature=temperature, max_tokens=max_tokens)
        wrong = report(found, time.perf_counter() - started)
        await compare(engine)
    finally:
        await engine.aclose()
    return 1 if wrong else 0


def report(found: list[Answer], seconds: float) -> int:
    """Print the results; return the number of wrong responses."""
    print(f"{'schema':14}{'valid':>7}{'length':>7}{'wrong':>7}{'tokens':>8}")
    for name in SCHEMAS:
        print(row(name, [answer for answer in found if answer.name == name]))
    print(row("all", found))
    tokens = sum(answer.tokens for answer in found)
    print(f"{tokens} tokens in {seconds:.0f} s, {AT_ONCE} at once: {tokens / seconds:.1f} tokens/s\n")
    wrong = [answer for answer in found if answer.faults]
    for answer in wrong:
        print(f"{answer.name}, seed {answer.seed}: {answer.text!r}: {'; '.join(answer.faults)}")
    return len(wrong)


def row(name: str, found: list[Answer]) -> str:
    cut = sum(answer.reason == "length" for answer in found)
    wrong = sum(bool(answer.faults) for answer in found)
    tokens = sum(answer.tokens for answer in found)
    return f"{name:14}{len(found) - cut - wrong:7}{cut:7}{wrong:7}{tokens:8}"


async def compare(engine: Engine) -> None:
    """Print the milliseconds per token of one sequence: the minimum of several rounds, each kind in turn."""
    plain = Generation(
        id="plain",
        model="m",
        prompt=Text("The history of the town began when"),
        sampling=Sampling(temperature=1.5, seed=1),
        max_tokens=TOKENS,
        ignore_eos=True,
    )
    kinds = {
        "plain": plain,
        "any text": with_fields(plain, grammar=ANY_TEXT),
        "JSON schema": with_fields(request("report", 1, 1.5, TOKENS), prompt=plain.prompt),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, generation in kinds.items():
            times[name].append(await token_ms(engine, generation))
    for name, each in times.items():
        took = min(each)  # other work of the machine only makes it slower
        print(f"{name:14}{took:7.2f} ms a token{took / min(times['plain']) - 1:+8.1%}")


async def token_ms(engine: Engine, generation: Generation) -> float:
    """Milliseconds per token after the first one."""
    meter = Meter()
    await events_of(engine, generation, meter)
    assert meter.first_token_at is not None
    return (time.monotonic() - meter.first_token_at) / (meter.completion_tokens - 1) * 1000


if __name__ == "__main__":
    sys.exit(main())
