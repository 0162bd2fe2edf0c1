"""onnxruntime-genai behind stdin and stdout, because it has no server. peers.py runs this in the peers' environment.

    python genai_peer.py BUNDLE THREADS CONTEXT

Request, a line of JSON: {"text": ..., "max_tokens": ..., "keep": true if the conversation continues}.
Response, a line of JSON: the fields of `Reply` in clients.py.
"""

import json
import sys
import time

import onnxruntime_genai as genai


def main() -> None:
    bundle, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config = genai.Config(bundle)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = genai.Model(config)
    tokenizer = genai.Tokenizer(model)
    serve(model, tokenizer, context)


def serve(model: genai.Model, tokenizer: genai.Tokenizer, context: int) -> None:
    generator = None
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        if generator is None or not request["keep"]:
            del generator
            params = genai.GeneratorParams(model)
            params.set_search_options(max_length=context, do_sample=False, min_length=context)  # no end-of-turn token
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
