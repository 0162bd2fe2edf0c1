"""Responses that repeat known text: plain decoding, prompt-lookup decoding and `prediction` compared.

    python benchmarks/prediction.py [--quick] [--write docs/benchmarks.md]

SmolLM2 on the CPU with the worker's own token loop, greedy, without a server. A round runs each task in each way, and
every way must give the same tokens. A small model often does not follow the instruction, and then the prediction that a
client would send does not help. The ways `its answer, ...` show a model that does follow: the prediction is its own
answer, with every 12th or every 50th word changed.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import NoReturn

from report import parser, publish, spread, table
from weights import EXACT, USUAL, bundle_of

from gateway.bundles.bundle import load_bundle
from gateway.config.tables import LocalModel
from gateway.engines.local.prompts import setup_of
from gateway.generation import Chat, Message
from gateway.prompts.encoder import PromptEncoder
from gateway.prompts.messages import Encode
from gateway.sampling import Sampling
from gateway.worker.frames import Failed, FromWorker, Submit, Tokens, WorkerSpec
from gateway.worker.main import open_decoder
from gateway.worker.token_loop import TokenLoop

FILE = """\
def average(values):
    total = 0
    for value in values:
        total = total + value
    return total / len(values)


def largest(values):
    best = values[0]
    for value in values:
        if value > best:
            best = value
    return best


def smallest(values):
    best = values[0]
    for value in values:
        if value < best:
            best = value
    return best
"""
JSON = """\
{"name": "Ada Lovelace", "born": 1815, "died": 1852, "country": "England", "known_for": ["the first program",
"notes on the analytical engine"], "father": "Lord Byron", "mother": "Anne Isabella Milbanke"}
"""
STORY = """\
The lighthouse was on a rock far out in the bay. Every evening the keeper climbed its two hundred steps, lit the lamp
and wrote the weather into his book. In the winter of the great storm no boat could reach him for seven weeks. He ate
what he had stored, burned the old stairs of the boathouse, and kept the lamp alight every single night.
"""
TASKS = {
    "rewrite a file": (
        f"{FILE}\nWrite this file again, with `best` renamed to `found`. Answer with the file only.",
        FILE,
    ),
    "answer in given JSON": (f"{JSON}\nRepeat this JSON with the year of birth set to 1816.", JSON),
    "quote a context": (f"{STORY}\nRepeat the text above word by word.", STORY),
}
WAYS = ("plain", "lookup", "prediction", "every 12th", "every 50th")


@dataclass
class Run:
    """One response: its tokens, and the times in seconds at which they arrived."""

    ids: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    first: int = 0  # tokens of the first call

    @property
    def tokens_per_s(self) -> float:
        later = len(self.ids) - self.first
        return later / (self.arrivals[-1] - self.arrivals[0])


class Bench:
    """SmolLM2 in this process. Each way has its own token loop, because the loop measures the costs of its calls."""

    def __init__(self, model: LocalModel) -> None:
        folder = bundle_of(model)
        self.prompts = PromptEncoder(setup_of(load_bundle(folder), ""))
        decoder = open_decoder(WorkerSpec(bundle=str(folder), provider="cpu", threads=2, max_sequences=len(WAYS)))
        self._run = Run()
        self._loops = {
            way: TokenLoop(
                decoder,
                [decoder.new_cache()],
                self._take,
                make_constraint=_no_grammar,
                prefix_cache=False,
                lookup=way == "lookup",
            )
            for way in WAYS
        }

    def run(self, way: str, question: str, prediction: str, tokens: int) -> Run:
        chat = Chat(messages=(Message(role="user", content=question),))
        frame = Submit(
            id=1,
            ids=self.prompts.encode(Encode(prompt=chat, context_length=8192)).ids,
            sampling=Sampling(temperature=0),
            max_tokens=tokens,
            prediction=self.prompts.tokens.encode_continuation(prediction) if prediction else [],
        )
        self._run = Run()
        loop = self._loops[way]
        loop.submit(frame)
        while not loop.is_idle:
            loop.turn()
        return self._run

    def _take(self, frame: FromWorker) -> None:
        match frame:
            case Tokens(ids=ids):
                if not self._run.arrivals:
                    self._run.first = len(ids)
                self._run.ids += ids
                self._run.arrivals.append(time.perf_counter())
            case Failed(message=message):
                raise SystemExit(message)


def _no_grammar(*_: object) -> NoReturn:
    raise AssertionError("no request here has a grammar")


def with_words_changed(text: str, every: int) -> str:
    words = text.split(" ")
    return " ".join(word[::-1] + "x" if index % every == every // 2 else word for index, word in enumerate(words))


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    rounds, tokens = (1, 24) if arguments.quick else (5, 192)
    tasks = dict([*TASKS.items()][:1]) if arguments.quick else TASKS
    bench = Bench(EXACT if arguments.quick else USUAL)
    speeds: dict[tuple[str, str], list[float]] = {(task, way): [] for task in tasks for way in WAYS}
    differing: list[str] = []
    bench.run("plain", "Hello", "", 8)
    for _ in range(rounds):
        for task, (question, known) in tasks.items():
            plain = bench.run("plain", question, "", tokens)
            speeds[task, "plain"].append(plain.tokens_per_s)
            answer = bench.prompts.tokens.decode(plain.ids)
            predictions = "", known, with_words_changed(answer, 12), with_words_changed(answer, 50)
            for way, prediction in zip(WAYS[1:], predictions, strict=True):
                run = bench.run(way, question, prediction, tokens)
                speeds[task, way].append(run.tokens_per_s)
                if run.ids != plain.ids:
                    differing.append(f"{task}, {way}")
    rows, bars = [], {}
    for task in tasks:
        base = speeds[task, "plain"]
        ratios = {way: [a / b for a, b in zip(speeds[task, way], base, strict=True)] for way in WAYS[1:]}
        rows.append([task, spread(base), *(f"{spread(ratios[way], 2)}x" for way in WAYS[1:])])
        bars[f"{task}, tokens/s"] = {way: statistics.median(speeds[task, way]) for way in WAYS}
    same = "Every way gave the same tokens." if not differing else f"**Tokens differed**: {sorted(set(differing))}."
    how = f"Median and range of {rounds} rounds of {tokens} tokens, two threads. {same}"
    predicted = ("the given text", "its answer, every 12th word changed", "its answer, every 50th word changed")
    head = ["task", "plain, tokens/s", "lookup", *(f"prediction: {text}" for text in predicted)]
    publish("prediction", f"{how}\n\n{table(head, rows)}", bars, arguments.write)


if __name__ == "__main__":
    main()
