"""onnxruntime-genai behind stdin and stdout, because it has no server. peers.py runs this in the peers' environment.

    python genai_peer.py BUNDLE THREADS

Request, a line of JSON: {"text": ..., "max_tokens": ..., "keep": true if the conversation continues}.
Response, a line of JSON: the fields of `Reply` in clients.py.
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
        serve(model, tokenizer)


def serve(model: genai.Model, tokenizer: genai.Tokenizer) -> None:
    generator = None
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        if generator is None or not request["keep"]:
            del generator
            params = genai.GeneratorParams(model)
            params.set_search_options(max_length=4096, do_sample=False, min_length=4095)  # no end-of-turn token
            generator = genai.Generator(model, params)
        ids = tokenizer.encode(request["text"])
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(request["max_tokens"] - 1):
            generator.generate_next_token()
        gap_s = time.perf_counter() - first
        reply = {"first_s": first - began, "gap_s": gap_s, "computed": len(ids), "generated": request["max_tokens"]}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
