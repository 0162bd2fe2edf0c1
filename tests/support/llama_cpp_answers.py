"""Runs the small random models of tests/support/architectures/ with llama.cpp, from the GGUF files of the tests.

It shows that the files are what llama.cpp expects: its greedy answers are those of `transformers`. CI does not run it.

    python -m venv v && v/bin/pip install xllamacpp gguf numpy msgspec safetensors
    v/bin/python -m tests.support.llama_cpp_answers [NAME ...]

The differences are llama.cpp's own: it ignores the windows of "llama", "qwen2" and "phi3".
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.architectures.cases import CASES
from tests.support.architectures.gguf_files import write_gguf
from tests.support.architectures.models import reference

_END = 2  # the end token, which the server leaves out


def main(names: list[str]) -> None:
    for name in names or CASES:
        model = reference(name)
        with tempfile.TemporaryDirectory() as folder:
            path = write_gguf(model, Path(folder) / f"{name}.gguf")
            request = json.dumps({"prompt": model.prompt, "count": len(model.answer), "path": str(path)})
            command = [sys.executable, "-m", "tests.support.llama_cpp_answers", "--answer"]  # its server never ends
            output = subprocess.run(command, input=request, capture_output=True, text=True, encoding="utf-8").stdout
        answer = json.loads(output.splitlines()[-1]) if output.strip() else []
        known = model.answer[: model.answer.index(_END)] if _END in model.answer else model.answer
        print(f"{name}: {'equal' if answer[: len(known)] == known else f'{answer} instead of {known}'}", flush=True)


def print_answer() -> None:
    import os

    import xllamacpp

    request = json.loads(sys.stdin.read())
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers = request["path"], 512, 0
    params.warmup, params.port = False, 0
    server = xllamacpp.Server(params)
    connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
    body = {"prompt": request["prompt"], "n_predict": request["count"], "temperature": 0, "return_tokens": True}
    body |= {"ignore_eos": True, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False}
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    print(f"\n{json.dumps(json.loads(connection.getresponse().read())['tokens'])}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--answer"]:
        print_answer()
    else:
        main(sys.argv[1:])
