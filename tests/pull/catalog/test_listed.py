"""The list of models without an index."""

from __future__ import annotations

import re

from msgspec.structs import replace

from gateway.pull.catalog.entry import PROOFS, Entry, short_name
from gateway.pull.catalog.listed import listed_entries, with_speed
from gateway.pull.sources import find_sources
from gateway.qnn.chips import CHIP_NAMES
from tests.support.paths import ROOT

ENTRIES = listed_entries(find_sources({}))


def test_list_is_complete_and_consistent() -> None:
    assert len(ENTRIES) >= 5
    for entry in ENTRIES:
        assert entry.name == short_name(entry.title)
        assert entry.chip in CHIP_NAMES
        assert entry.licence and entry.licence_url.startswith("https://")
        assert bool(entry.url) != bool(entry.export)
        assert not re.search(r"[{}]", entry.url + entry.export)
        assert (entry.kind == "text") or entry.note


def test_addresses_follow_the_model_server() -> None:
    for entry in listed_entries(find_sources({"NPU_GATEWAY_MODEL_SERVER": "http://127.0.0.1:8"})):
        assert entry.url.startswith("http://127.0.0.1:8/data/adh2/") or "http://127.0.0.1:8/qai-hub" in entry.export


def test_published_speed_is_added_where_none_is_known() -> None:
    entry = Entry(name="qwen3-4b", title="Qwen3-4B", id="qwen3_4b", chip="x-elite", source="AI Hub")
    assert with_speed(entry).tokens_per_s == 21.2
    assert with_speed(replace(entry, tokens_per_s=17.0)).tokens_per_s == 17.0
    assert with_speed(Entry(name="a", title="A", id="a", chip="x-elite", source="AI Hub")).tokens_per_s is None


def test_every_layout_that_is_called_proven_has_its_test() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert PROOFS
    for test in PROOFS.values():
        assert (ROOT / test).is_file()
        assert f"`{test}`" in page
