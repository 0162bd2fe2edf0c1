"""All servers together, and one model by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.pull.catalog.catalog import Catalog, entries_for, named, read_catalog, resolve
from gateway.pull.catalog.entry import Entry
from gateway.pull.sources import Sources, find_sources
from gateway.qnn.chips import chip_named
from tests.support.model_index import X2_ELITE, X_ELITE, X_PLUS, ai_hub_model, publish, put_card, put_hub_list
from tests.support.model_server import ModelServer

ELITE, PLUS, X2 = map(chip_named, ("x-elite", "x-plus", "x2-elite"))


@pytest.fixture
def full(server: ModelServer) -> ModelServer:
    """AI Hub with three models, the Hub with a card of one of them and of another."""
    publish(
        server,
        ai_hub_model(server, "Qwen3-4B", chipsets=(X_ELITE, X_PLUS, X2_ELITE), speed=21.2),
        ai_hub_model(server, "Qwen3-4B-Instruct-2507", chipsets=(X2_ELITE,)),
        ai_hub_model(server, "Llama-v3.2-3B-Instruct", shared=False),
        ai_hub_model(server, "Qwen3-VL-4B-Instruct", tags=("MODEL_TAG_VLM",)),
    )
    cards = [{"id": f"qualcomm/{name}", "pipeline_tag": "text-generation"} for name in ("Qwen3-4B", "Falcon3-7B")]
    put_hub_list(server, "qualcomm", *cards)
    put_hub_list(server, "llmware", {"id": "llmware/qwen3-4b-onnx-qnn"})
    for card in cards:
        put_card(server, card["id"], X_ELITE, "https://bucket/card.zip")
    server.repos["yichqian/geniex-qairt-models"] = {}
    return server


def read(server: ModelServer, folder: Path, now_s: float = 0.0) -> Catalog:
    return read_catalog(sources=Sources(server.url, server.url, server.url), folder=folder, now_s=now_s)


def test_servers_and_list_are_joined(full: ModelServer, tmp_path: Path) -> None:
    catalog = read(full, tmp_path)
    assert catalog.problems == [] and catalog.is_read
    rows = [(entry.name, entry.source) for entry in entries_for(ELITE, catalog)]
    assert rows == [
        ("falcon3-7b", "Hugging Face"),
        ("ibm-granite3.1-8b", "AI Hub (older)"),
        ("llama3.1-8b", "AI Dev Home"),
        ("llama3.2-3b", "AI Hub"),
        ("llama3.2-3b", "AI Dev Home"),
        ("qwen2-7b-ssd", "AI Dev Home"),
        ("qwen2.5-vl-3b", "AI Dev Home"),
        ("qwen3-4b", "AI Hub"),
        ("qwen3-4b", "Hugging Face"),
        ("qwen3-vl-4b", "AI Hub"),
    ]
    assert {entry.chip for entry in entries_for(X2, catalog)} == {"x2-elite"}


def test_x_plus_gets_its_own_file_or_that_of_x_elite(full: ModelServer, tmp_path: Path) -> None:
    entries = entries_for(PLUS, read(full, tmp_path))
    chips = {(entry.name, entry.source): entry.chip for entry in entries}
    assert len(chips) == len(entries)
    assert chips["qwen3-4b", "AI Hub"] == "x-plus"
    assert chips["llama3.2-3b", "AI Dev Home"] == "x-elite"


def test_second_reading_needs_no_server(full: ModelServer, tmp_path: Path) -> None:
    first = read(full, tmp_path)
    full.requests.clear()
    assert read(full, tmp_path, now_s=3600.0) == first
    assert full.requests == []


def test_unreachable_servers_are_two_sentences_and_the_list_remains(tmp_path: Path) -> None:
    closed = find_sources({"NPU_GATEWAY_MODEL_SERVER": "http://127.0.0.1:1"})
    catalog = read_catalog(sources=closed, folder=tmp_path)
    assert not catalog.is_read
    assert [problem.partition(":")[0] for problem in catalog.problems] == [
        "AI Hub could not be read",
        "Hugging Face could not be read",
    ]
    assert all(
        problem.endswith(" Check the network, then run `npu-gateway catalog --refresh`.")
        for problem in catalog.problems
    )
    assert resolve("llama3.2-3b", ELITE, catalog).source == "AI Dev Home"


def test_old_lists_are_used_and_their_age_is_shown(full: ModelServer, tmp_path: Path) -> None:
    first = read(full, tmp_path)
    full.files.clear()
    full.repos.clear()
    later = read(full, tmp_path, now_s=2 * 86400.0)
    assert later.entries == first.entries and later.is_read
    assert later.problems[0].endswith(
        "Its list is 2.0 days old. Try `npu-gateway catalog --refresh` later, and then a newer npu-gateway."
    )


@pytest.mark.parametrize("name", ["llama3.2-3b", "Llama-v3.2-3B-Instruct", "llama_v3_2_3b_instruct", "llama3.2:3b"])
def test_spellings_find_the_model_that_can_be_downloaded(full: ModelServer, tmp_path: Path, name: str) -> None:
    entry = resolve(name, ELITE, read(full, tmp_path))
    assert (entry.source, bool(entry.url)) == ("AI Dev Home", True)


def test_best_variant_is_from_ai_hub_for_the_own_chip(full: ModelServer, tmp_path: Path) -> None:
    catalog = read(full, tmp_path)
    for chip in (ELITE, PLUS, X2):
        entry = resolve("qwen3-4b", chip, catalog)
        assert (entry.source, entry.chip, entry.layout) == ("AI Hub", chip.name, "genie")


def test_model_that_must_be_exported_is_an_entry(full: ModelServer, tmp_path: Path) -> None:
    entry = resolve("llama3.2-3b", X2, read(full, tmp_path))
    assert entry.url == "" and "export --chipset qualcomm-snapdragon-x2-elite" in entry.export


def test_model_of_another_chip_is_an_error_with_its_chips(full: ModelServer, tmp_path: Path) -> None:
    message = "qwen3-4b-2507 is not published for Snapdragon X Elite. It is published for Snapdragon X2 Elite."
    with pytest.raises(ConfigError, match=message):
        resolve("qwen3-4b-2507", ELITE, read(full, tmp_path))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qwen3-4", "Did you mean qwen3-4b"),
        ("lama3.2-3b", "Did you mean llama3.2-3b"),
        ("llama", "Did you mean llama3.1-8b or llama3.2-3b?"),
        ("zzz", "in the catalog. `npu-gateway catalog` lists"),
        ("", "in the catalog."),
        ("x" * 5000, "in the catalog."),
    ],
)
def test_unknown_name_is_an_error_with_the_nearest(full: ModelServer, tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve(name, ELITE, read(full, tmp_path))
    assert hint in raised.value.message
    assert len(raised.value.message) < 400


def test_files_of_qualcomm_come_before_those_of_others_and_exports_last(full: ModelServer, tmp_path: Path) -> None:
    full.repos["yichqian/geniex-qairt-models"] = {"llama_v3_2_3b_instruct/genie_config.json": b"{}"}
    catalog = read(full, tmp_path)
    sources = [(entry.source, bool(entry.url)) for entry in named("llama3.2-3b", ELITE, catalog)]
    assert sources == [("AI Dev Home", True), ("Hugging Face", True), ("AI Hub", False)]
    assert resolve("llama3.2-3b", ELITE, catalog).source == "AI Dev Home"


@pytest.mark.parametrize("url", ["http://bucket/falcon.zip", "http://[::1/falcon.zip", "file:///etc/passwd", "a"])
def test_address_without_encryption_is_not_listed(full: ModelServer, tmp_path: Path, url: str) -> None:
    put_card(full, "qualcomm/Falcon3-7B", X_ELITE, url)
    with pytest.raises(ConfigError, match="no model 'falcon3-7b'"):
        resolve("falcon3-7b", ELITE, read(full, tmp_path))


def test_without_a_chip_every_variant_is_named(full: ModelServer, tmp_path: Path) -> None:
    found = named("qwen3-4b", None, read(full, tmp_path))
    assert {entry.chip for entry in found} == {"x-elite", "x-plus", "x2-elite"}


def test_entries_are_unique(full: ModelServer, tmp_path: Path) -> None:
    def key(entry: Entry) -> tuple[str, ...]:
        return (entry.name, entry.source, entry.chip, entry.precision, entry.url)

    entries = read(full, tmp_path).entries
    assert len({key(entry) for entry in entries}) == len(entries)
