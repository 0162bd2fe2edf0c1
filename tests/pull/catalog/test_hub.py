"""The Hub's lists: from the documents of a real server to entries."""

from __future__ import annotations

import pytest

from gateway.pull.catalog.fetch import Reader, Unreachable, Unreadable
from gateway.pull.catalog.hub import read_hub
from tests.support.model_index import PHONE, X2_ELITE, X_ELITE, put_card, put_hub_list
from tests.support.model_server import Fault, ModelServer

FOLDERS = "yichqian/geniex-qairt-models"
FOLDER_LIST = f"api/models/{FOLDERS}/tree/main"


@pytest.fixture(autouse=True)
def _lists(server: ModelServer) -> None:
    """One model of each kind."""
    put_hub_list(
        server,
        "qualcomm",
        {"id": "qualcomm/Qwen3-4B", "pipeline_tag": "text-generation", "tags": ["license:apache-2.0"]},
        {"id": "qualcomm/Qwen3-8B", "pipeline_tag": "text-generation", "tags": []},
        {"id": "qualcomm/Qwen3-VL-4B", "pipeline_tag": "image-text-to-text"},
        {"id": "qualcomm/ResNet50", "pipeline_tag": "image-classification"},
        {"id": "qualcomm/Llama-v3-8B", "pipeline_tag": "text-generation"},
    )
    put_card(server, "qualcomm/Qwen3-4B", X_ELITE, "https://bucket/qwen3-4b-x.zip")
    put_card(server, "qualcomm/Qwen3-8B", X2_ELITE, "https://bucket/qwen3-8b-x2.zip")
    put_card(server, "qualcomm/Qwen3-VL-4B", X_ELITE, "https://bucket/vl.zip")
    put_card(server, "qualcomm/ResNet50", X_ELITE, "https://bucket/resnet.zip")
    put_hub_list(
        server,
        "llmware",
        {"id": "llmware/llama-3.2-3b-onnx-qnn", "tags": ["license:llama3.2"]},
        {"id": "llmware/llama-3.2-3b-gguf"},
    )
    server.repos["llmware/llama-3.2-3b-onnx-qnn"] = {"model.onnx": bytes(10), "a_qnn.bin": bytes(2000)}
    server.repos[FOLDERS] = {
        "README.md": b"x",
        "llama_v3_2_3b_instruct/genie_config.json": bytes(5),
        "llama_v3_2_3b_instruct/part_1_of_2.bin": bytes(3000),
        "granite4_micro/model.bin": bytes(10),
    }


def test_every_kind_of_repository_is_listed(server: ModelServer, reader: Reader) -> None:
    listed = read_hub(server.url, reader, ())
    assert listed.problems == []
    assert [(entry.name, entry.chip, entry.kind, entry.url, entry.bytes) for entry in listed.entries] == [
        ("qwen3-4b", "x-elite", "text", "https://bucket/qwen3-4b-x.zip", None),
        ("qwen3-4b", "x-plus", "text", "https://bucket/qwen3-4b-x.zip", None),
        ("qwen3-8b", "x2-elite", "text", "https://bucket/qwen3-8b-x2.zip", None),
        ("qwen3-vl-4b", "x-elite", "vision", "https://bucket/vl.zip", None),
        ("qwen3-vl-4b", "x-plus", "vision", "https://bucket/vl.zip", None),
        ("llama3.2-3b", "x-elite", "text", "hf:llmware/llama-3.2-3b-onnx-qnn", 2010),
        ("llama3.2-3b", "x-elite", "text", f"hf:{FOLDERS}/llama_v3_2_3b_instruct", 3005),
    ]
    card, repository = listed.entries[0], listed.entries[5]
    assert (card.precision, card.qairt, card.licence) == ("w4a16", "2.45.0.260326154327", "apache-2.0")
    assert (repository.layout, repository.licence) == ("pipeline", "llama3.2")


def test_cards_of_known_models_are_not_read(server: ModelServer, reader: Reader) -> None:
    listed = read_hub(server.url, reader, {"qwen34b", "qwen38b", "qwen3vl4b"})
    assert [entry.url[:3] for entry in listed.entries] == ["hf:", "hf:"]
    assert not server.sent("qualcomm/Qwen3-4B/resolve/main/release_assets.json")


def test_card_for_phones_only_is_not_listed(server: ModelServer, reader: Reader) -> None:
    put_card(server, "qualcomm/Qwen3-4B", PHONE, "https://bucket/phone.zip")
    assert "qwen3-4b" not in {entry.name for entry in read_hub(server.url, reader, ()).entries}


def test_damaged_card_costs_only_itself(server: ModelServer, reader: Reader) -> None:
    server.files["qualcomm/Qwen3-4B/resolve/main/release_assets.json"] = b'{"precisions": []}'
    names = {entry.name for entry in read_hub(server.url, reader, ()).entries}
    assert "qwen3-4b" not in names and "qwen3-8b" in names


def test_one_list_that_fails_costs_only_itself(server: ModelServer, reader: Reader) -> None:
    server.faults[FOLDER_LIST] = Fault(status=503)
    listed = read_hub(server.url, reader, ())
    assert len(listed.entries) == 6
    assert len(listed.problems) == 1 and "HTTP 503" in listed.problems[0]


def test_hub_that_refuses_everything_is_unreadable(server: ModelServer, reader: Reader) -> None:
    server.files.clear()
    server.repos.clear()
    with pytest.raises(Unreadable, match="HTTP 404"):
        read_hub(server.url, reader, ())


def test_hub_without_an_answer_is_tried_once(reader: Reader) -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        read_hub("http://127.0.0.1:1", reader, ())
