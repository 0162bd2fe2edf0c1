"""AI Hub's releases: from the documents of a real server to entries."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.pull.catalog.ai_hub import FALLBACK, read_ai_hub
from gateway.pull.catalog.entry import Entry
from gateway.pull.catalog.fetch import Reader, Unreachable, Unreadable
from tests.support.model_index import PHONE, X2_ELITE, X_ELITE, X_PLUS, ai_hub_model, publish, put
from tests.support.model_server import Fault, ModelServer


def by_chip(entries: list[Entry]) -> dict[str, Entry]:
    assert len({entry.chip for entry in entries}) == len(entries)
    return {entry.chip: entry for entry in entries}


def only(entries: list[Entry], chip: str = "x-elite") -> Entry:
    return by_chip(entries)[chip]


def test_entry_has_everything_that_is_published(server: ModelServer, reader: Reader) -> None:
    publish(server, ai_hub_model(server, "Qwen3-4B", speed=21.2, zip_bytes=321))
    listed = read_ai_hub(server.url, reader)
    assert listed.problems == []
    entry = only(listed.entries)
    assert (entry.name, entry.title, entry.id) == ("qwen3-4b", "Qwen3-4B", "qwen3_4b")
    assert (entry.kind, entry.layout, entry.precision, entry.parameters) == ("text", "genie", "w4a16", 4.0)
    assert (entry.licence, entry.source, entry.qairt) == ("apache-2.0", "AI Hub", "2.45.0.260326154327")
    assert (entry.tokens_per_s, entry.ttft_ms, entry.context) == (21.2, (100.0, 3200.0), 8192)
    assert entry.url.endswith("/qwen3_4b-geniex_qairt-w4a16-qualcomm_snapdragon_x_elite.zip")
    assert entry.bytes == 321
    assert (entry.export, entry.note) == ("", "")


def test_each_chip_gets_its_own_file_and_speed(server: ModelServer, reader: Reader) -> None:
    publish(server, ai_hub_model(server, "Qwen3-4B", speed=21.2, chipsets=(PHONE, X_ELITE, X_PLUS, X2_ELITE)))
    entries = by_chip(read_ai_hub(server.url, reader).entries)
    assert {chip: entry.url.rpartition("snapdragon_")[2] for chip, entry in entries.items()} == {
        "x-elite": "x_elite.zip",
        "x-plus": "x_plus_8_core.zip",
        "x2-elite": "x2_elite.zip",
    }
    assert entries["x2-elite"].tokens_per_s == 42.4


def test_x_plus_takes_the_file_of_x_elite(server: ModelServer, reader: Reader) -> None:
    publish(server, ai_hub_model(server, "Qwen3-4B", chipsets=(X_ELITE,)))
    entries = by_chip(read_ai_hub(server.url, reader).entries)
    assert set(entries) == {"x-elite", "x-plus"}
    assert entries["x-plus"].url.endswith("x_elite.zip")


def test_phone_with_the_same_hexagon_version_is_no_laptop(server: ModelServer, reader: Reader) -> None:
    publish(server, ai_hub_model(server, "Qwen3-4B", chipsets=(PHONE,)))
    assert read_ai_hub(server.url, reader).entries == []


def test_unknown_name_of_a_laptop_chip_is_found_by_number_and_version(server: ModelServer, reader: Reader) -> None:
    publish(server, ai_hub_model(server, "Qwen3-4B", chipsets=("qualcomm-new",)))
    chipset = {"name": "qualcomm-new", "world": "WEBSITE_WORLD_COMPUTE", "htp_version": 81, "soc_model": 88}
    put(server, "qai-hub-models/releases/latest/platform.json", {"chipsets": [chipset]})
    assert [entry.chip for entry in read_ai_hub(server.url, reader).entries] == ["x2-elite"]


def test_older_runtime_is_taken_if_there_is_no_newer(server: ModelServer, reader: Reader) -> None:
    publish(server, ai_hub_model(server, "Phi-3.5-Mini-Instruct", runtimes=("RUNTIME_ONNX", "RUNTIME_GENIE")))
    assert "-genie-" in only(read_ai_hub(server.url, reader).entries).url


def test_model_that_may_not_be_offered_has_the_commands_to_export_it(server: ModelServer, reader: Reader) -> None:
    model = ai_hub_model(server, "Llama-v3.2-3B-Instruct", shared=False, licence="MODEL_LICENSE_LLAMA3", speed=19.7)
    publish(server, model)
    entries = by_chip(read_ai_hub(server.url, reader).entries)
    assert set(entries) == {"x-elite", "x-plus", "x2-elite"}
    entry = entries["x2-elite"]
    assert entry.url == "" and entry.bytes is None
    assert "licence" in entry.note
    assert entry.export.splitlines() == [
        'pip install "qai-hub-models[llama-v3-2-3b-instruct]"',
        "qai-hub configure --api_token TOKEN",
        "python -m qai_hub_models.models.llama_v3_2_3b_instruct.export --chipset qualcomm-snapdragon-x2-elite "
        "--skip-profiling --output-dir llama3.2-3b",
        "npu-gateway pull ./llama3.2-3b",
    ]
    assert entry.tokens_per_s == 39.4


def test_models_for_pictures_and_embeddings_are_listed_but_not_served(server: ModelServer, reader: Reader) -> None:
    encoder = ai_hub_model(server, "Nomic-Embed-Text", runtimes=("RUNTIME_PRECOMPILED_QNN_ONNX",), chipsets=(X_ELITE,))
    vision = ai_hub_model(server, "Qwen3-VL-4B-Instruct", tags=("MODEL_TAG_VLM",), chipsets=(X2_ELITE,))
    publish(server, encoder, vision)
    entries = {entry.name: entry for entry in read_ai_hub(server.url, reader).entries if entry.chip != "x-plus"}
    assert (entries["nomic-embed-text"].kind, entries["nomic-embed-text"].layout) == ("embedding", "encoder")
    assert (entries["qwen3-vl-4b"].kind, entries["qwen3-vl-4b"].layout) == ("vision", "vision")
    assert all(entry.note and not entry.proven_by for entry in entries.values())


def test_other_models_are_not_listed(server: ModelServer, reader: Reader) -> None:
    gguf = ai_hub_model(server, "Gemma-4", runtimes=("RUNTIME_GENIEX_LLAMACPP",))
    picture = ai_hub_model(server, "ResNet50", runtimes=("RUNTIME_TFLITE", "RUNTIME_PRECOMPILED_QNN_ONNX"))
    publish(server, gguf, picture)
    assert read_ai_hub(server.url, reader).entries == []


def test_older_release_without_lists_in_its_manifest_is_read(server: ModelServer, reader: Reader) -> None:
    models = [
        ai_hub_model(server, "Qwen3-4B", runtimes=("RUNTIME_GENIE",)),
        ai_hub_model(server, "Llama-v3-8B", shared=False),
        ai_hub_model(server, "Stable-Diffusion", runtimes=("RUNTIME_QNN_DLC",)),
    ]
    for model in models:
        for key in ("supported_runtimes", "supported_chipsets", "tags", "use_case"):
            del model["manifest"][key]
    publish(server, *models, version="0.53.1")
    names = [entry.name for entry in read_ai_hub(server.url, reader).entries if entry.chip == "x-elite"]
    assert names == ["qwen3-4b", "llama3-8b"]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_named_release_is_read_if_there_is_no_latest(server: ModelServer, reader: Reader, status: int) -> None:
    publish(server, ai_hub_model(server, "Qwen3-4B"), release=FALLBACK)
    server.faults["qai-hub-models/releases/latest/manifest.json"] = Fault(status=status)
    assert only(read_ai_hub(server.url, reader).entries).name == "qwen3-4b"


def test_no_release_at_all_is_unreadable(server: ModelServer, reader: Reader) -> None:
    with pytest.raises(Unreadable, match=r"does not have the file \(HTTP 404 for .*/releases/latest/manifest.json\)"):
        read_ai_hub(server.url, reader)


def test_server_without_an_answer_is_tried_once(server: ModelServer, reader: Reader) -> None:
    publish(server, ai_hub_model(server, "Qwen3-4B"), release=FALLBACK)
    server.add("qai-hub-models/releases/latest/manifest.json", b"{}", cuts=[1])
    with pytest.raises(Unreachable):
        read_ai_hub(server.url, reader)
    assert [path for path, _ in server.requests] == ["qai-hub-models/releases/latest/manifest.json"]


@pytest.mark.parametrize("manifest", [{"entries": []}, {"models": {"a": 1}}, {"models": [{"name": "a"}]}, []])
def test_unknown_form_of_the_manifest_is_unreadable(server: ModelServer, reader: Reader, manifest: Any) -> None:
    put(server, "qai-hub-models/releases/latest/manifest.json", manifest)
    with pytest.raises(Unreadable, match=r"sent a manifest.json of a form that this version does not know"):
        read_ai_hub(server.url, reader)


def test_newer_release_is_read_with_a_sentence(server: ModelServer, reader: Reader) -> None:
    publish(server, ai_hub_model(server, "Qwen3-4B"), version="2.0.0")
    listed = read_ai_hub(server.url, reader)
    assert len(listed.entries) == 3
    assert listed.problems == ["has release 2.0.0, which is newer than this version of the gateway knows"]


def test_model_without_readable_files_costs_only_itself(server: ModelServer, reader: Reader) -> None:
    models = [ai_hub_model(server, title) for title in ("Qwen3-4B", "Qwen3-8B", "Falcon3-7B-Instruct")]
    publish(server, *models)
    server.files[f"{models[1]['folder']}/release-assets.json"] = b'{"assets": [{"chipset": 1}]}'
    listed = read_ai_hub(server.url, reader)
    assert {entry.name for entry in listed.entries} == {"qwen3-4b", "falcon3-7b"}
    assert len(listed.problems) == 1
    assert listed.problems[0].startswith("lists 1 of 3 models that could not be read: qwen3_8b sent a release-assets")


def test_missing_speeds_licence_and_platform_cost_only_themselves(server: ModelServer, reader: Reader) -> None:
    model = ai_hub_model(server, "Qwen3-4B", speed=20.0)
    publish(server, model)
    server.files[f"{model['folder']}/info.json"] = b"nothing"
    server.files[f"{model['folder']}/perf.json"] = json.dumps({"performance_metrics": None}).encode()
    del server.files["qai-hub-models/releases/latest/platform.json"]
    listed = read_ai_hub(server.url, reader)
    entry = only(listed.entries)
    assert (entry.licence, entry.tokens_per_s, entry.bytes) == ("", None, 100)
    assert len(listed.problems) == 1 and "platform.json" in listed.problems[0]
