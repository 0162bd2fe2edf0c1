"""A reload with real workers: two engines of a model are never in memory, and no answer is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from gateway.config.file import load_config
from gateway.pull.watch import ConfigSource
from tests.support.server import serving, wait_until

BODY: dict[str, Any] = {"model": "tiny", "prompt": [40, 41], "temperature": 0, "ignore_eos": True, "stream": True}


def text_of(tiny: Path, name: str, keys: str) -> str:
    return f"[server]\nport = 0\n[models.{name}]\npath = '{tiny}'\nprovider = 'cpu'\nthreads = 1\n{keys}"


def test_changed_and_renamed_model_gets_a_new_worker_when_the_old_one_has_ended(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text_of(tiny, "tiny", ""), encoding="utf-8")
    config = load_config(file)
    with serving(config, source=ConfigSource(file, {}, config), stop_token="t") as running, running.http() as http:

        def reload(text: str) -> Any:
            file.write_text(text, encoding="utf-8")
            return http.post("/gateway/reload", headers={"x-stop-token": "t"}).json()

        def later(name: str) -> int:
            with running.http() as other:
                body = {**BODY, "model": name, "stream": False, "max_tokens": 3}
                return other.post("/v1/completions", json=body).status_code

        workers = [model_of(http)["engine"]["pid"]]
        for name, keys in (("tiny", "context_length = 128\n"), ("renamed", "context_length = 128\n")):
            body = {**BODY, "model": model_of(http)["model"], "max_tokens": 100}
            with http.stream("POST", "/v1/completions", json=body) as answer, ThreadPoolExecutor(1) as pool:
                lines = answer.iter_lines()
                next(lines)
                changed = reload(text_of(tiny, name, keys))
                assert changed["changed"] or changed["added"] == ["renamed"]
                waiting = pool.submit(later, name)
                frames = [line for line in lines if line]
                assert frames[-1] == "data: [DONE]" and not any('"error"' in frame for frame in frames)
                assert waiting.result() == 200
            worker = model_of(http)["engine"]["pid"]
            assert worker not in workers
            wait_until(lambda: not psutil.pid_exists(workers[-1]), "the old worker has not ended")
            workers.append(worker)
        assert http.get("/v1/models").json()["data"][0]["context_length"] == 128
        assert reload(text_of(tiny, "renamed", "aliases = ['x']\n" + keys))["applied"] == ["models.renamed.aliases"]
        assert model_of(http)["engine"]["pid"] == workers[-1]


def model_of(http: httpx.Client) -> Any:
    [model] = http.get("/readyz").json()["models"]
    return model
