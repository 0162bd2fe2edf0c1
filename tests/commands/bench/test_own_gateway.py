"""The gateway process that `bench` starts."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import closing

import pytest

from gateway.commands.bench.own_gateway import OwnGateway
from gateway.commands.bench.requests import Target
from gateway.commands.client import openai_client
from gateway.errors import EngineFailed
from tests.support.processes import free_port
from tests.support.server import config_of, scripted, serving


def test_wait_until_ready_reports_last_log_line_of_ended_gateway() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('first line\\nlast line')"]
    url = f"http://127.0.0.1:{free_port()}"
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stderr=log) as process,
        openai_client(f"{url}/v1", "", retries=0) as client,
        closing(OwnGateway(process, Target(client, url, "m"), log)) as ended,
    ):
        process.wait()
        with pytest.raises(EngineFailed, match="ended before the model was ready: last line"):
            ended.wait_until_ready()


def test_model_that_does_not_load_is_the_last_line_of_the_log() -> None:
    models = {"m": scripted(load_error="It is broken.")}
    waits = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with serving(config_of(models)) as running, running.openai() as client, tempfile.TemporaryFile() as log, waits:
        log.write(b"m could not be loaded: It is broken.\n")
        with (
            closing(OwnGateway(waits, Target(client, running.url, "m"), log)) as broken,
            pytest.raises(EngineFailed, match=r"^The model did not load: m could not be loaded: It is broken\.$"),
        ):
            broken.wait_until_ready()
