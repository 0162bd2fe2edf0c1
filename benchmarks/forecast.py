"""Predicted and measured time to first token (TTFT): SmolLM2 on the CPU, through a real socket.

    python benchmarks/forecast.py [--quick] [--write docs/benchmarks.md]

Each round sends prompts of different lengths, none of them cached, and compares the header
`x-gateway-predicted-ttft-ms` with the time until the first text arrives. The first prompts are not counted: the gateway
needs them to learn the cost of a call.
"""

from __future__ import annotations

import json
import statistics
import time
from contextlib import closing
from http.client import HTTPConnection

from processes import running_gateway
from report import parser, publish, spread, table
from weights import USUAL, bundle_of

HEADER = "x-gateway-predicted-ttft-ms"
LEARNED = (5, 60, 120)  # words of the prompts that are not counted
COUNTED = (8, 30, 100, 150, 200)
REPLY_S = 600  # for one response on a busy machine


def first_token(port: int, words: int, start: int) -> tuple[float | None, float]:
    """Milliseconds: the predicted TTFT, None if there is none yet, and the measured one."""
    text = " ".join(f"word{start + i}" for i in range(words))
    messages = [{"role": "user", "content": text}]
    body = json.dumps({"model": "smollm2", "messages": messages, "stream": True, "max_tokens": 2})
    with closing(HTTPConnection("127.0.0.1", port, timeout=REPLY_S)) as connection:
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        while b'"content":"' not in (line := response.readline()) or b'"content":""' in line:
            assert line, "the stream has no text"
        measured_ms = 1e3 * (time.perf_counter() - began)
        predicted = response.headers[HEADER]
    return (None if predicted is None else float(predicted)), measured_ms


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    rounds, learned, counted = (1, (5, 20), COUNTED[:1]) if arguments.quick else (5, LEARNED, COUNTED)
    predicted: dict[int, list[float]] = {words: [] for words in counted}
    measured: dict[int, list[float]] = {words: [] for words in counted}
    model = f"[models.smollm2]\npath = {json.dumps(bundle_of(USUAL).as_posix())}\n"
    with running_gateway(model) as (_, port):
        starts = iter(range(0, 1_000_000, 1000))  # different words, so that no prompt is cached
        for words in learned:
            first_token(port, words, next(starts))
        for _ in range(rounds):
            for words in counted:
                expected_ms, found_ms = first_token(port, words, next(starts))
                assert expected_ms is not None, "the gateway predicts nothing"
                predicted[words].append(expected_ms)
                measured[words].append(found_ms)
    ratios = {words: [p / m for p, m in zip(predicted[words], measured[words], strict=True)] for words in counted}
    rows = [
        [f"{words} words", spread(predicted[words], 0), spread(measured[words], 0), spread(ratios[words], 2)]
        for words in counted
    ]
    bars = {
        f"TTFT of {words} words, ms": {
            "predicted": statistics.median(predicted[words]),
            "measured": statistics.median(measured[words]),
        }
        for words in counted
    }
    text = table(["prompt", "predicted TTFT, ms", "measured TTFT, ms", "ratio"], rows)
    publish("forecast", f"Median and range of {rounds} rounds.\n\n{text}", bars, arguments.write)


if __name__ == "__main__":
    main()
