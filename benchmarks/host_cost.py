"""Cost of the host in an NPU step: everything but the device, at the shape of Llama 3.2 3B with a context of 4096.

    python benchmarks/host_cost.py [--quick] [--write docs/benchmarks.md]

The graphs for the NPU have the inputs and outputs of real ones and compute nothing. The worker's own decoder, sampler
and token loop run, then the pipe and the gateway's work for the stream, all in one process and one thread. The time of
a graph with much work of the device (the last one, with the logits) is left out, and so is the pause that
replaces a device's step. Times include the measurement itself, about 20 µs of a step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from host_device import HUB, ON_CPU, OWN, WATCH, Bundles, HollowSession, tokenizer_file, watch_worker
from report import parser, publish, table

from gateway.dialects.plain import PlainParser
from gateway.engines.local.events import FrameTranslator
from gateway.generation import Event, Generation, Grammar, Meter, Text
from gateway.routes.openai_api.render_chat import ChatRendering
from gateway.sampling import Sampling
from gateway.text.tokens import TextTokenizer
from gateway.worker.decoders.base import Decoder, KVCache
from gateway.worker.frame_batcher import FrameBatcher
from gateway.worker.frames import FrameBatch, Message, Submit, Tokens, decode_from_worker, encode
from gateway.worker.grammar.compiler import GrammarCompiler
from gateway.worker.main import warm_up
from gateway.worker.token_loop import TokenLoop
from tests.support.npu.hollow_bundle import LLAMA_3B

LAYOUTS = (OWN, ON_CPU, HUB)
SECTIONS = ("inputs", "ORT calls", "cache", "head", "sampling", "token loop", "pipe", "detokenise", "SSE")
TITLES = {
    "inputs": "inputs and masks",
    "ORT calls": "ORT calls, without the device",
    "cache": "cache write-back",
    "head": "head, or its logits to float32",
}
PAUSES = {"hot": 0.0, "paced, 23 ms": 0.023, "paced, 50 ms": 0.05}
PROMPT = 8 * LLAMA_3B.width
NUCLEUS = Sampling(temperature=0.7, top_p=0.9)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("flat", {"sampling": Sampling(temperature=0)}),
    "temperature, top_p; flat": ("flat", {"sampling": NUCLEUS}),
    "temperature, top_p; peaked": ("peaked", {"sampling": NUCLEUS}),
    "temperature, top_k = 40; flat": ("flat", {"sampling": Sampling(temperature=0.7, top_k=40)}),
    "greedy with 5 logprobs": ("flat", {"sampling": Sampling(temperature=0), "logprobs": 5}),
    "greedy with a grammar": (
        "flat",
        {"sampling": Sampling(temperature=0), "grammar": Grammar(kind="regex", source=r"[a-z ]*")},
    ),
}


Turn = tuple[Mapping[str, float], Mapping[str, float]]  # seconds by section: wall, CPU


@dataclass
class Run:
    """The turns of one answer: its prompt in windows, the first step after it, the other steps."""

    windows: list[Turn] = field(default_factory=list)
    first_step: list[Turn] = field(default_factory=list)
    steps: list[Turn] = field(default_factory=list)


class Host:
    """A worker's token loop over a hollow bundle, and the gateway's end of the pipe."""

    def __init__(self, decoder: Decoder, tokens: TextTokenizer, grammars: GrammarCompiler) -> None:
        self._decoder, self._tokens = decoder, tokens
        self._reader, self._writer = Pipe(duplex=False)
        self._batcher = FrameBatcher(self._send)
        caches: list[KVCache] = [decoder.new_cache()]
        warm_up(decoder, caches, time.perf_counter)
        self._loop = TokenLoop(
            decoder,
            caches,
            self._batcher.put,
            make_constraint=lambda grammar: partial(grammars.compile(grammar).constraint, grammar.param),
            lookup=False,  # it would draft: all answers repeat one token
        )
        self._id = 0

    def answer(self, steps: int, **fields: Any) -> Run:
        """Compute a prompt that shares nothing with the last one, and `steps` tokens."""
        self._id += 1
        prompt = [self._id, *range(1000, 999 + PROMPT)]
        submit = Submit(id=self._id, ids=prompt, max_tokens=steps + 1, **fields)
        rendering = ChatRendering(Generation(id="x", model="m", prompt=Text(""), logprobs=fields.get("logprobs")))
        events: list[Event] = []
        translator = self._translator(submit, events.append)
        turns: list[Turn] = []
        self._loop.submit(submit)
        while not self._loop.is_idle:
            WATCH.reset()
            self._loop.turn()
            WATCH.enter("pipe")
            self._batcher.flush()
            WATCH.leave()
            self._receive(translator, rendering, events)
            turns.append((WATCH.wall, WATCH.cpu))
        windows = PROMPT // LLAMA_3B.width
        return Run(turns[:windows], turns[windows : windows + 1], turns[windows + 1 : -1])

    def _translator(self, submit: Submit, put: Callable[[Event], None]) -> FrameTranslator:
        parsers = [PlainParser()]
        emit: Any = put
        return FrameTranslator(
            submit,
            (),
            Meter(),
            emit,
            tokens=self._tokens,
            parsers=parsers,
            send=lambda frame: None,
            call_s=lambda: 0.0,
        )

    def _send(self, frame: Message) -> None:
        WATCH.enter("pipe")
        self._writer.send_bytes(encode(frame))
        WATCH.leave()

    def _receive(self, translator: FrameTranslator, rendering: ChatRendering, events: list[Event]) -> None:
        """Turn all frames into chunks of a stream."""
        for frame in self._frames():
            if isinstance(frame, Tokens):
                frame.ids[:] = [id % self._tokens.vocab_size for id in frame.ids]  # those of a smaller tokenizer
            WATCH.enter("detokenise")
            translator.take(frame)
            WATCH.leave()
            WATCH.enter("SSE")
            for event in events:
                list(rendering.pieces("m", event))
            events.clear()
            WATCH.leave()

    def _frames(self) -> Iterator[Any]:
        while self._reader.poll():
            WATCH.enter("pipe")
            message = decode_from_worker(self._reader.recv_bytes())
            WATCH.leave()
            yield from message.frames if isinstance(message, FrameBatch) else [message]


def measure(bundles: Bundles, rounds: int) -> dict[str, list[Run]]:
    """Runs by layout and pause, and by case."""
    tokenizer = tokenizer_file()
    tokens = TextTokenizer.load(tokenizer)
    found: dict[str, list[Run]] = {}
    with closing(GrammarCompiler(tokenizer, LLAMA_3B.vocab, [2])) as grammars:
        grammars.start()
        for _ in range(rounds):
            for layout in LAYOUTS:
                with closing(bundles.opened(layout)) as decoder:
                    host = Host(decoder, tokens, grammars)
                    for pause, seconds in PAUSES.items() if layout != ON_CPU else [("hot", 0.0)]:
                        HollowSession.pause_s = seconds
                        run = host.answer(25 if seconds else 100, sampling=Sampling(temperature=0))
                        found.setdefault(f"{layout}, {pause}", []).append(run)
            for name, (logits, fields) in CASES.items():
                with closing(bundles.opened(HUB, logits)) as decoder:
                    found.setdefault(name, []).append(Host(decoder, tokens, grammars).answer(60, **fields))
    return found


def ms(runs: Sequence[Run], turns: str, *sections: str) -> str:
    """Wall and CPU milliseconds of the sections in a turn: median over the turns of a run, and over the runs."""
    chosen: list[list[Turn]] = [getattr(run, turns) for run in runs]

    def median(which: int) -> float:
        found = [[sum(turn[which][section] for section in sections) for turn in each] for each in chosen]
        return 1e3 * statistics.median(statistics.median(each) for each in found)

    return f"{median(0):.2f} / {median(1):.2f}"


def step_table(found: dict[str, list[Run]]) -> str:
    columns = [f"{OWN}, hot", *(f"{layout}, {pause}" for layout in (OWN, HUB) for pause in PAUSES if pause != "hot")]
    columns.insert(3, f"{HUB}, hot")
    rows = [[TITLES.get(each, each), *(ms(found[name], "steps", each) for name in columns)] for each in SECTIONS]
    rows += [["other", *(ms(found[name], "steps", "other") for name in columns)]]
    rows += [["**all**", *(f"**{ms(found[name], 'steps', *SECTIONS, 'other')}**" for name in columns)]]
    return table(["ms of a step, wall / CPU", *columns], rows)


def other_tables(found: dict[str, list[Run]]) -> Iterator[str]:
    rows = [
        [name, ms(found[name], "steps", "sampling"), ms(found[name], "steps", *SECTIONS, "other")] for name in CASES
    ]
    yield table(["AI Hub, hot: ms, wall / CPU", "sampling", "all of a step"], rows)
    rows = [
        [
            name,
            ms(found[name], "windows", "inputs"),
            ms(found[name], "windows", "cache"),
            ms(found[name], "windows", *SECTIONS, "other"),
            ms(found[name], "first_step", "cache"),
        ]
        for name in (f"{layout}, {pause}" for layout in (OWN, HUB) for pause in PAUSES)
    ]
    head = ["ms, wall / CPU", "window: inputs and masks", "window: cache", "window: all", "first step: cache"]
    yield table(head, rows)


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    watch_worker()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Bundles(Path(folder)), 1 if arguments.quick else 3)
    on_cpu = ms(found[f"{ON_CPU}, hot"], "steps", "head")
    note = (
        "The host's work around a device call at the shape of Llama 3.2 3B, context 4096, vocabulary of 128,256. The "
        "graphs for the NPU are hollow; *paced*: a pause replaces the device's step. Median of 3 rounds. *Our build*: "
        "graphs write the cache in place, head on the NPU. *AI Hub*: graphs return the new rows, three parts. "
        f"The prompt has {PROMPT} tokens. With the head on the CPU, our build's head takes {on_cpu} ms."
    )
    bars = {
        name: {"wall ms of a step": float(ms(found[name], "steps", *SECTIONS, "other").split(" / ")[0])}
        for name in (f"{layout}, {pause}" for layout in (OWN, HUB) for pause in PAUSES)
    }
    text = "\n\n".join([note, step_table(found), *other_tables(found)])
    publish("host_cost", text, bars, arguments.write)


if __name__ == "__main__":
    main()
