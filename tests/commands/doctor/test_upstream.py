from __future__ import annotations

from gateway.commands.doctor.upstream import upstream_findings
from gateway.config.tables import UpstreamModel


def test_problem_of_a_server_has_cause_and_step() -> None:
    models = {"a": UpstreamModel(url="http://h/v1"), "b": UpstreamModel(url="http://i/v1")}
    problem = "http://i/v1 refuses the key (HTTP 401). Set `api_key` in the model's table"
    good, bad = upstream_findings(models, {"a": [""], "b": [problem]})
    assert (good.level, good.detail) == ("ok", "http://h/v1 answers")
    assert (bad.level, bad.cause, bad.because) == ("bad", "upstream", "b: http://i/v1 refuses the key (HTTP 401)")
    assert bad.step == "set `api_key` in the model's table"


def test_server_of_several_is_bad_only_if_none_answers() -> None:
    models = {"a": UpstreamModel(targets=("http://h/v1", "http://i/v1"))}
    down = "http://i/v1 does not answer. Start that server"
    found = list(upstream_findings(models, {"a": ["", down]}))
    assert [(each.level, each.what) for each in found] == [("ok", "model a, server 1"), ("note", "model a, server 2")]
    assert [each.level for each in upstream_findings(models, {"a": [down, down]})] == ["bad", "bad"]


def test_key_that_is_not_in_this_environment_is_a_note() -> None:
    models = {"a": UpstreamModel(url="http://h/v1", api_key_env="K")}
    [note] = upstream_findings(models, {"a": ["http://h/v1 got no request: api_key_env: the variable 'K' is not set"]})
    assert note.level == "note"
