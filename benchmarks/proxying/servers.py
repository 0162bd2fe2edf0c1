"""Starts the servers that proxy.py compares: the scripted server, this gateway, and LiteLLM's proxy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import Running, free_port, running

from proxying.client import KEY

MODEL = "scripted"
_SERVER = Path(__file__).with_name("server.py")
#: What its documentation sets for production. No database, no callbacks, no look at the network for prices.
_LITELLM = {
    "LITELLM_MASTER_KEY": KEY,
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


@contextmanager
def scripted_server() -> Iterator[int]:
    """The port of a server that is ready."""
    port = free_port()
    with running([sys.executable, str(_SERVER), str(port)]) as server:
        server.wait_until_ready(port, "/")
        yield port


@contextmanager
def litellm(program: Path, target: int) -> Iterator[tuple[Running, int]]:
    """LiteLLM's proxy in front of the server at the port `target`, with one worker, and its port.

    Args:
        program: `litellm` in an environment that has `litellm[proxy]`.
    """
    port = free_port()
    parameters = {"model": f"hosted_vllm/{MODEL}", "api_base": f"http://127.0.0.1:{target}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
        "litellm_settings": {"request_timeout": 600, "set_verbose": False, "json_logs": True},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        command = [
            str(program),
            "--config",
            str(file),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num_workers",
            "1",
        ]
        environment = os.environ | _LITELLM
        with running(
            [*command, "--telemetry", "False"], cwd=folder, env=environment, stdout=subprocess.DEVNULL
        ) as made:
            made.wait_until_ready(port, "/health/readiness")
            yield made, port
