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
