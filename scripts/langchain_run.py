"""LangChain's standard integration tests against a running gateway, and other examples, for several sampling settings.

    python scripts/langchain_run.py [--url http://127.0.0.1:8000] [--model smollm2-135m] [--max-tokens 256] SETTING ...

SETTING is a JSON object with parameters of a request, for example '{"dry_multiplier": 0.8}'; without one, the gateway's
defaults are measured. Makes .venv-langchain with LangChain's packages from PyPI. Prints a row for each setting:

- LangChain: passed / all tests of the suite that ran. `--max-tokens` is what the client sets; 0: nothing.
- Paris: answers with "Paris" / questions about the capital of France. With a temperature, each is put with three seeds.
- Ended: structured answers and calls that end before 256 tokens and are valid JSON / all.

`--min-passed N` makes the exit code 1 if fewer tests of the suite pass.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path
from typing import Any

import environment

VENV = environment.ROOT / ".venv-langchain"
PACKAGES = ("langchain-tests==1.1.9", "langchain-openai==1.7.4")
SUITE = """
import json, os
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

class TestGateway(ChatModelIntegrationTests):
    chat_model_class = ChatOpenAI
    chat_model_params = json.loads(os.environ["LANGCHAIN_PARAMS"])
    supports_json_mode = True
    model_override_value = chat_model_params["model"]
"""
#: One event loop: LangChain keeps its HTTP client between tests.
SETTINGS = """
[pytest]
asyncio_mode = auto
asyncio_default_test_loop_scope = session
asyncio_default_fixture_loop_scope = session
"""

PARIS = (
    "What is the capital of France?",
    "Give me the capital of France.",
    "Name the capital city of France.",
    "Which city is the capital of France?",
    "What is the capital city of France? Answer in one word.",
    "what is the capital of france",
    "What is France's capital?",
    "Please say what the capital of France is.",
    "I need to know the capital of France.",
    "The capital of France is",
    "Can you name the capital of France?",
    "Do you know the capital of France?",
    "What city is the capital of France?",
    "Question: What is the capital of France? Answer:",
    "Hi! What is the capital of France?",
    "What's the capital of France?",
    "Capital of France?",
    "Where is the capital of France?",
    "Quick: capital of France?",
    "Answer briefly: what is the capital of France?",
)


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT = {"type": "string"}
JOKE = _object(setup=TEXT, punchline=TEXT)
TEXTS = {"type": "array", "items": TEXT}
STRUCTURED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Give me a joke about cats.", JOKE),
    ("Give me a joke about dogs.", JOKE),
    ("Give me the setup to a joke about cats, no punchline.", JOKE),
    ("I want a joke about cats, with its punchline.", JOKE),
    ("Describe a person who lives in Berlin.", _object(name=TEXT, age={"type": "integer"}, bio=TEXT)),
    ("Give me a recipe for pancakes.", _object(title=TEXT, steps=TEXTS)),
    ("Summarise: The cat sat on the mat because it was warm, and the dog was jealous.", _object(summary=TEXT)),
    ("Write a short story about a robot.", _object(story=TEXT)),
    ("Write an email that asks for a day off.", _object(subject=TEXT, body=TEXT)),
    (
        "List three fruits with their colors.",
        _object(fruits={"type": "array", "items": _object(name=TEXT, color=TEXT)}),
    ),
    ("Which words describe the sea?", _object(words=TEXTS)),
    ("What is a computer?", _object(definition=TEXT, example=TEXT)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--min-passed", type=int, default=0)
    parser.add_argument("settings", nargs="*", type=json.loads, default=[{}])
    arguments = parser.parse_args()
    python = _environment()
    fewest = sys.maxsize
    print("| setting | LangChain | Paris | ended |\n|---|---|---|---|")
    for setting in arguments.settings:
        passed, ran, failed = _suite(python, arguments.url, arguments.model, arguments.max_tokens, setting)
        right, questions = _paris(arguments.url, arguments.model, setting)
        ended = sum(_ends(arguments.url, arguments.model, setting, *case) for case in STRUCTURED)
        row = f"| `{json.dumps(setting)}` | {passed} / {ran} | {right} / {questions} | {ended} / {len(STRUCTURED)} |"
        print(row, *failed, sep="\n  ", flush=True)
        fewest = min(fewest, passed)
    return int(fewest < arguments.min_passed)


def _environment() -> Path:
    python = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(VENV, with_pip=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def _suite(python: Path, url: str, model: str, max_tokens: int, setting: dict[str, Any]) -> tuple[int, int, list[str]]:
    """Returns the number of passed tests, of all that ran, and the names of the others."""
    params = {"model": model, "base_url": f"{url}/v1", "api_key": "none", "stream_usage": True}
    params |= {"max_tokens": max_tokens} if max_tokens else {}
    params |= {"temperature": setting["temperature"]} if "temperature" in setting else {}
    params |= {"extra_body": {key: value for key, value in setting.items() if key != "temperature"}}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_suite.py").write_text(SUITE, encoding="utf-8")
        (Path(folder) / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
        command = [str(python), "-m", "pytest", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "test_suite.py"]
        environ = os.environ | {"LANGCHAIN_PARAMS": json.dumps(params)}
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, encoding="utf-8")
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) \S+::(\S+)", done.stdout, re.MULTILINE)
    return counts.get("passed", 0), sum(counts.values()), failed


def _paris(url: str, model: str, setting: dict[str, Any]) -> tuple[int, int]:
    seeds = range(3) if setting.get("temperature") else range(1)
    fields = [{"messages": _user(text), "max_tokens": 64, "seed": seed, **setting} for text in PARIS for seed in seeds]
    texts = [_chat(url, model, each)["message"]["content"] for each in fields]
    return sum("Paris" in text for text in texts), len(texts)


def _ends(url: str, model: str, setting: dict[str, Any], text: str, schema: dict[str, Any]) -> bool:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    fields = {"messages": _user(text), "max_tokens": 256, "seed": 1, "response_format": form, **setting}
    choice = _chat(url, model, fields)
    return choice["finish_reason"] == "stop" and isinstance(json.loads(choice["message"]["content"]), dict)


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _chat(url: str, model: str, fields: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"model": model, **fields}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        choice: dict[str, Any] = json.load(reply)["choices"][0]
    return choice


if __name__ == "__main__":
    sys.exit(main())
