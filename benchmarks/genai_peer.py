"""onnxruntime-genai behind stdin and stdout, run by peers.py in the peers' environment: it has no server of its own.

    python genai_peer.py BUNDLE THREADS

A line of JSON in: {"text": ..., "max_tokens": ..., "keep": whether the conversation so far goes on}. A line out for
it: seconds to the first token and from it to the last, and how many tokens were computed and generated.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime_genai as genai


def main() -> None:
    bundle, threads = Path(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(bundle, Path(folder, "bundle"))
        settings = Path(folder, "bundle", "genai_config.json")
        config = json.loads(settings.read_text(encoding="utf-8"))
        config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
        settings.write_text(json.dumps(config), encoding="utf-8")
        model = genai.Model(str(settings.parent))
        tokenizer = genai.Tokenizer(model)
        answer_all(model, tokenizer)


def answer_all(model: genai.Model, tokenizer: genai.Tokenizer) -> None:
    generator = None
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        began = time.perf_counter()
        if generator is None or not ask["keep"]:
            del generator
            params = genai.GeneratorParams(model)
            params.set_search_options(max_length=4096, do_sample=False, min_length=4095)  # no end of the turn
            generator = genai.Generator(model, params)
        ids = tokenizer.encode(ask["text"])
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(ask["max_tokens"] - 1):
            generator.generate_next_token()
        gap_s = time.perf_counter() - first
        told = {"first_s": first - began, "gap_s": gap_s, "computed": len(ids), "generated": ask["max_tokens"]}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
