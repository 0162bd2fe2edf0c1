"""docs/configuration.md has every key, as the structs have it, and config.toml has the keys that people change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config.check import TABLES
from gateway.config.file import load_config
from gateway.config.settings import from_environ
from gateway.config.tables import MODEL_KINDS
from gateway.errors import ConfigError
from scripts import config_reference
from tests.support.paths import ROOT

PAGE = config_reference.page()
VARIABLES = sorted(set(re.findall(r"`(NPU_GATEWAY_\w+[A-Z])`", PAGE)))
#: Of these tables, config.toml shows every key that is not in the list.
RARE = {
    "server": {"insecure", "max_body_bytes", "ping_s", "shutdown_grace_s", "drain_s", "timeout_s", "log_prompts"},
    "breaker": {"enabled", "probes", "probe_itself"},
}


def test_page_is_what_the_structs_say() -> None:
    written = config_reference.PAGE.read_text(encoding="utf-8")
    assert written == PAGE, "docs/configuration.md is old: run `python -m scripts.config_reference` and commit it"


def test_every_key_has_a_meaning() -> None:
    found = config_reference.undocumented()
    assert not found, "write `#:` lines above these fields of gateway/config/tables/, or a comment after them"


def test_every_table_and_engine_has_a_section() -> None:
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert {f"[{name}]" for name in TABLES} <= set(titles)
    assert {f'[models.NAME] with engine = "{engine}"' for engine in MODEL_KINDS} <= set(titles)


def test_every_variable_of_the_page_is_read() -> None:
    unknown: list[ConfigError] = []
    own = {"NPU_GATEWAY_MODELS_LLAMA3_2_3B_THREADS"}
    list(from_environ({name: "" for name in VARIABLES if name not in own}, ["NAME"], unknown.append))
    assert not unknown and len(VARIABLES) > 60


def test_options_of_the_page_are_those_of_serve() -> None:
    source = (ROOT / "gateway" / "commands" / "serve.py").read_text(encoding="utf-8")
    assert set(re.findall(r'"((?:server|models)\.\w+)": arguments\.', source)) == set(config_reference.FLAGS)
    for flag in config_reference.FLAGS.values():
        assert f"`{flag}`" in PAGE


@pytest.mark.parametrize("table", TABLES)
def test_delivered_file_shows_the_keys_that_people_change(table: str) -> None:
    """As values or as comments. `load_config` refuses a key that does not exist, also among the comments:
    tests/config/test_file.py."""
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    section = re.search(rf"^\[{table}\].*?(?=^\[|^# \[|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"config.toml lacks [{table}]"
    shown = set(re.findall(r"^(?:# )?(\w+) = ", section[0], re.MULTILINE))
    keys = set(TABLES[table].__struct_fields__) - RARE.get(table, set())
    if table != "defaults":  # the sampling keys are in the tables of models
        assert shown == keys
    assert shown <= set(TABLES[table].__struct_fields__)


def test_shortest_configuration_of_the_page_loads(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert block
    file = tmp_path / "config.toml"
    file.write_text(block[1], encoding="utf-8")
    assert list(load_config(file, {}).models) == ["mine"]
