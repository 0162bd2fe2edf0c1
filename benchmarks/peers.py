"""The gateway, llama.cpp's server and onnxruntime-genai with the same weights on the same machine.

    python benchmarks/peers.py [--size 135m|1b|3b] [--weights q4_0|q4_k_m] [--install] [--write PAGE]
                               [--rows ROW[,ROW] [--keep]] [--longest TOKENS] [--threads 2] [--peers FOLDER] [--quick]

`--install` makes an environment for the peers in FOLDER (default: build/peers). A peer that is not installed is left
out, with a message. The models of 1b and 3b have random weights and the shape of Llama 3.2 (`random_gguf.py`); 135m is
SmolLM2 with Q4_1. llama.cpp reads the GGUF file, the gateway the bundle that it builds from it, onnxruntime-genai the
same bundle. All of them round activations to int8.

Each row is measured in pairs: the servers one directly after the other, with the same new prompts. A pair in which
other processes used more than a quarter of a core is left out of the figures and counted. All servers generate the same
number of tokens. The samples are kept in build/peers-SIZE-WEIGHTS.json: `--rows` measures single rows again, and with
`--keep` adds to their earlier samples. `--rows none` only shows the table. `--longest` limits the long contexts.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from peer.install import install
from peer.results import CALM, Results, Sample, comparison
from peer.rows import QUICK, Contender, Row, Texts, rows
from peer.starting import GATEWAY, Model, contenders
from peer.usage import Tree, elsewhere
from random_gguf import FORMATS, SHAPES, random_bundle, random_gguf
from report import ROOT, parser, publish
from weights import EXACT, USUAL, bundle_of, gguf_file


def model_of(size: str, weights: str, *, quick: bool) -> Model:
    if size == "135m":
        bundle = bundle_of(EXACT if quick else USUAL)
        return Model(size, bundle, gguf_file(Path(tempfile.gettempdir())))
    return Model(f"{size}-{weights}", random_bundle(size, weights), random_gguf(size, weights))


def measure(name: str, row: Row, servers: list[Contender], trees: list[Tree], results: Results, tries: int) -> None:
    """Until the wanted number of pairs was calm. `tries`: how many are measured for each of them, at most."""
    calm = 0
    for _ in range(tries * row.pairs):
        pair = results.next_pair(name)
        samples = [_sample(name, pair, row, server, trees) for server in _order(servers, pair)]
        results.add([sample for sample in samples if sample.figures])
        calm += all(sample.elsewhere <= CALM for sample in samples)
        if calm == row.pairs:
            break


def _order(servers: list[Contender], pair: int) -> list[Contender]:
    """The gateway is next to each other server, once before it and once after it."""
    ours, *others = servers
    order = [*others[:1], ours, *others[1:]]
    return order if pair % 2 else order[::-1]


def _sample(name: str, pair: int, row: Row, server: Contender, trees: list[Tree]) -> Sample:
    with elsewhere(trees) as others:
        figures = row.measure(server, Texts(f"{name} {pair}"))
    return Sample(name, pair, server.name, round(others.cores, 3), figures)


def options() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--size", choices=("135m", *SHAPES), default="135m")
    made.add_argument("--weights", choices=tuple(FORMATS), default="q4_0")
    made.add_argument("--rows", type=lambda text: text.split(","), metavar="ROW[,ROW]")
    made.add_argument("--keep", action="store_true")
    made.add_argument("--longest", type=int, default=8192)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--peers", type=Path, default=ROOT / "build" / "peers", metavar="FOLDER")
    made.add_argument("--install", action="store_true")
    return made.parse_args()


def main() -> None:
    arguments = options()
    if arguments.install:
        install(arguments.peers)
    model = model_of(arguments.size, arguments.weights, quick=arguments.quick)
    known = QUICK if arguments.quick else rows(arguments.longest)
    wanted = [name for name in known if arguments.rows is None or name in arguments.rows]
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        results = Results(Path(scratch if arguments.quick else ROOT / "build", f"peers-{model.name}.json"))
        trees: list[Tree] = []
        servers = [
            Contender(name, start, model.gguf if name == "llama.cpp" else model.bundle, trees, stack)
            for name, start in contenders(arguments.peers, model, arguments.threads)
        ]
        for server in servers if wanted and not arguments.quick else ():
            server.start_once()
        for name in wanted:
            if not arguments.keep:
                results.drop(name)
            measure(name, known[name], servers, trees, results, tries=1 if arguments.quick else 2)
    shown, bars = comparison(results.samples, list(known), GATEWAY)
    how = (
        f"Median and range of the calm pairs, {arguments.threads} threads each. A ratio is above 1 where the gateway "
        "is better. onnxruntime-genai has no server and runs one at a time."
    )
    publish(f"peers-{model.name}", f"{how}\n\n{shown}", bars, arguments.write)


if __name__ == "__main__":
    main()
