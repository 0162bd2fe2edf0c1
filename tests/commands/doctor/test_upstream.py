from __future__ import annotations

from gateway.commands.doctor.upstream import upstream_findings
from gateway.config.tables import UpstreamModel


def test_problem_of_a_server_has_cause_and_step() -> None:
    models = {"a": UpstreamModel(url="http://h/v1"), "b": UpstreamModel(url="http://i/v1")}
    silent = {"b": "http://i/v1 refuses the key (HTTP 401). Set `api_key` in the model's table"}
    good, bad = upstream_findings(models, silent)
    assert (good.level, good.detail) == ("ok", "http://h/v1 answers")
    assert (bad.level, bad.cause, bad.because) == ("bad", "upstream", "b: http://i/v1 refuses the key (HTTP 401)")
    assert bad.step == "set `api_key` in the model's table"
