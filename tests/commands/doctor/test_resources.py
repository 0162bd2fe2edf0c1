from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gateway.commands import options
from gateway.commands.doctor import resources
from gateway.commands.doctor.resources import Memory, disk_findings, load_findings, memory_findings, needs_of
from gateway.config.tables import Config, LocalModel, MemoryConfig, ServerConfig, StateConfig, UpstreamModel
from gateway.lanes.memory.needs import Need, Needs
from gateway.state.keys import add_key, revoke_key

GB = 1_000_000_000


def need(gigabytes: float) -> Need:
    return Need(bytes=int(gigabytes * GB), least_bytes=int(gigabytes * GB))


@pytest.mark.parametrize(
    ("needs", "memory", "is_running", "level", "cause"),
    [
        ({"a": 4}, Memory(total=16 * GB, available=8 * GB), False, "ok", ""),
        ({"a": 4}, Memory(total=16 * GB, available=3 * GB), False, "note", "memory pressure"),
        ({"a": 4}, Memory(total=16 * GB, available=3 * GB), True, "ok", ""),  # the gateway has its part already
        ({"a": 4}, Memory(total=16 * GB, available=GB // 2), True, "note", "memory pressure"),
        ({"a": 9, "b": 7}, Memory(total=16 * GB, available=15 * GB), False, "note", ""),  # they take turns
        ({"a": 11, "b": 1}, Memory(total=16 * GB, available=15 * GB), False, "bad", "memory"),
        ({}, Memory(total=16 * GB, available=8 * GB), False, "ok", ""),
    ],
)
def test_memory_is_compared_before_anything_is_loaded(
    needs: dict[str, int], memory: Memory, is_running: bool, level: str, cause: str
) -> None:
    found_needs = {name: need(size) for name, size in needs.items()}
    [found] = memory_findings(found_needs, memory, 10 * GB, is_running=is_running)
    assert (found.level, found.cause) == (level, cause)
    if found.cause != "memory pressure" or not is_running:
        assert all(name in found.detail for name in needs)


def test_configured_context_that_can_never_fit_is_bad(long_tiny: Path) -> None:
    config = Config(
        models={"a": LocalModel(path=str(long_tiny), context_length=8192)}, memory=MemoryConfig(budget_mb=2)
    )
    machine = Memory(total=16 * GB, available=8 * GB)
    [found] = memory_findings(needs_of(config, Needs()), machine, 2_000_000, is_running=False)
    assert found.level == "bad" and "context_length = 8192" in found.detail
    assert found.step.startswith("set context_length to at most ")


def test_needs_of_models_on_this_machine_are_estimated(tiny: Path, tmp_path: Path) -> None:
    models = {"a": LocalModel(path=str(tiny)), "gone": LocalModel(path=str(tmp_path / "gone")), "far": UpstreamModel()}
    found = needs_of(Config(models=dict(models)), Needs())
    assert list(found) == ["a"] and 10_000 < found["a"].least_bytes < 10_000_000 < found["a"].bytes < 300_000_000


def test_bundle_for_the_npu_counts_only_where_it_is_used(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "may_have_npu", lambda: False)
    shutil.copytree(tiny, tmp_path / "m")
    npu = Path(shutil.copytree(tiny, tmp_path / "m-npu"))
    (npu / "more.bin").write_bytes(b"1" * 5_000_000)
    auto, qnn = LocalModel(path=str(tmp_path / "m")), LocalModel(path=str(tmp_path / "m"), provider="qnn")
    found = needs_of(Config(models={"auto": auto, "qnn": qnn}), Needs())
    assert found["auto"].least_bytes < 5_000_000 < found["qnn"].least_bytes


def test_full_disk_is_a_note() -> None:
    [full], [free] = disk_findings(Path("models"), GB // 2), disk_findings(Path("models"), 20 * GB)
    assert (full.level, full.cause, free.level) == ("note", "disk", "ok")


def test_busy_processors_are_a_note() -> None:
    [busy], [idle] = load_findings(97), load_findings(10)
    assert (busy.level, busy.cause, idle.level) == ("note", "busy", "ok")


def state(folder: Path, *, keys: bool, **server: dict[str, str]) -> Config:
    url = f"sqlite:///{folder / 'state.sqlite'}"
    return Config(state=StateConfig(url=url, keys=keys), server=ServerConfig(**server))  # type: ignore[arg-type]


def test_database_that_has_the_keys_is_good(tmp_path: Path) -> None:
    config = state(tmp_path, keys=True)
    with options.state_of(config) as opened:
        assert add_key(opened, "anna", {}) and add_key(opened, "ben", {}) and revoke_key(opened, "ben")
    [found] = resources.database(config)
    assert (found.level, found.detail) == ("ok", f"{tmp_path / 'state.sqlite'}, keys: 1")


def test_database_without_a_key_refuses_all_requests_only_if_there_is_no_other_key(tmp_path: Path) -> None:
    [found] = resources.database(state(tmp_path, keys=True))
    assert (found.level, found.cause, found.step) == ("bad", "database", "`npu-gateway keys add NAME`")
    for config in (state(tmp_path, keys=False), state(tmp_path, keys=True, api_keys={"anna": "sk-anna"})):
        assert [each.level for each in resources.database(config)] == ["ok"]
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_database_that_cannot_be_read_is_bad_only_if_it_has_the_keys(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_bytes(b"this is no database. " * 500)
    found = [finding for keys in (True, False) for finding in resources.database(state(tmp_path, keys=keys))]
    assert [each.level for each in found] == ["bad", "note"]
    assert all("is damaged" in each.detail for each in found)
