"""`python scripts/serve.py NAME` in a fresh clone: from nothing to an answer through the emulated NPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.bundles.hashes import check_hashes
from tests.support.model_index import ai_hub_model, publish
from tests.support.model_server import ModelServer, serve_models
from tests.support.paths import ROOT
from tests.support.processes import OWN_GROUP, Serving, environment

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the repository. Its environment is complete, and has the packages of this one."""
    folder = tmp_path / "clone"
    for part in ("scripts", "gateway"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "config.toml", *(path.name for path in ROOT.glob("requirements*.lock"))):
        shutil.copy(ROOT / part, folder / part)
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    [packages] = [path for path in venv.rglob("site-packages") if "lib64" not in path.parts]
    paths = f"{folder}\n{sysconfig.get_paths()['purelib']}\n"
    (packages / "here.pth").write_text(paths, encoding="utf-8")
    code = "import environment; print(environment.digest('test'), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "scripts", check=True, capture_output=True, text=True
    )
    (venv / "ready").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def server(published_bundle: Path, tmp_path: Path) -> Iterator[ModelServer]:
    """AI Hub's bucket with one model, whose zip holds the bundle in one folder."""
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in published_bundle.rglob("*"):
            if file.is_file():
                packed.write(file, f"qwen3_4b-geniex/{file.relative_to(published_bundle).as_posix()}")
        packed.writestr("qwen3_4b-geniex/chat_template.jinja", TEMPLATE)
    with serve_models() as models:
        publish(models, ai_hub_model(models, "Qwen3-4B"))
        for name in [name for name in models.files if name.endswith(".zip")]:
            models.add(name, path.read_bytes(), cuts=[5_000, 20_000])
        yield models


@pytest.fixture
def running(clone: Path, server: ModelServer, tmp_path: Path) -> Iterator[Serving]:
    variables = environment(NPU_GATEWAY_MODEL_SERVER=server.url, XDG_CACHE_HOME=str(tmp_path / "cache"))
    del variables["PYTHONPATH"]  # the code of the clone
    arguments = ["qwen3-4b", "--port", "0", "--provider", "qnn"]
    with (
        (tmp_path / "stderr.txt").open("wb") as errors,
        subprocess.Popen(
            [sys.executable, str(clone / "scripts" / "serve.py"), *arguments],
            cwd=tmp_path,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            **OWN_GROUP,
        ) as process,
    ):
        yield Serving(process)
        process.kill()


def test_name_alone_ends_with_an_answer_of_the_npu(
    running: Serving, clone: Path, server: ModelServer, tmp_path: Path
) -> None:
    greeting = running.read_greeting()
    errors = (tmp_path / "stderr.txt").read_text(encoding="utf-8")
    assert "qwen3-4b  ready on" in greeting and "smollm2" not in greeting, errors
    assert "licence of qwen3-4b: apache-2.0" in errors and "Traceback" not in errors
    base = greeting.split(" on ")[1].split()[0]
    with httpx.Client(base_url=base, timeout=120) as client:

        def chat(**fields: Any) -> dict[str, Any]:
            body = {"model": "qwen3-4b", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, **fields}
            reply = client.post("/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            return dict(reply.json()["choices"][0])

        answer = chat(max_tokens=3, logprobs=True, top_logprobs=2)
        assert len(answer["logprobs"]["content"]) == 3
        assert all(-30 < token["logprob"] <= 0 for token in answer["logprobs"]["content"])
        schema = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}
        assert type(json.loads(chat(max_tokens=40, response_format=schema)["message"]["content"])["ok"]) is bool
        device = client.get("/models/qwen3-4b").json()
    assert "emulat" in json.dumps(device), device
    assert check_hashes(clone / "models" / "qwen3-4b") == []
    assert '[models."qwen3-4b"]\npath = "qwen3-4b"\n' in (clone / "config.toml").read_text(encoding="utf-8")
    [zip_name] = {path for path, _ in server.bytes if path.endswith(".zip")}
    assert sum(server.sent_bytes(zip_name)) == len(server.files[zip_name])  # cut twice, and no byte came twice
