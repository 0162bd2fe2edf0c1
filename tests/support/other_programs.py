"""The folders of other programs, as they write them, with tiny models or only the small files of models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.support.tiny_gguf import write_tiny_gguf

PIPELINE = {"model": {"type": "decoder-pipeline", "decoder": {"pipeline": [{"context": {}}]}}}
GRAPH = {"model": {"type": "llama", "decoder": {"session_options": {"provider_options": []}}}}
GENIE = {"dialog": {"version": 1, "type": "basic", "context": {}, "engine": {"model": {}}}}
DLC = {
    "model": {
        "type": "decoder",
        "decoder": {"session_options": {"provider_options": [{"qnn": {"genie_model": "True"}}]}},
    }
}
FOUNDRY = Path(".foundry", "cache", "models", "Microsoft")


def write_everything(home: Path) -> None:
    """One model of each kind and program."""
    bundle(home / FOUNDRY / "qwen2.5-7b-instruct-qnn-npu-2" / "v2", genai_config=PIPELINE, inference_model={})
    bundle(home / FOUNDRY / "Phi-3.5-mini-instruct-generic-cpu-1" / "v1", genai_config=GRAPH)
    bundle(home / ".aitk" / "models" / "DeepSeek" / "qnn-deepseek-r1-distill-qwen-7b", genai_config=PIPELINE)
    bundle(home / ".aitk" / "models" / "microsoft" / "phi-4-qairt", genai_config=DLC)
    geniex = home / ".cache" / "geniex" / "models"
    bundle(geniex / "ai-hub-models" / "Qwen3-4B", genie_config=GENIE, geniex={"PluginId": "qairt"})
    vision = {"genie": {"supports_vision": True}}
    bundle(geniex / "ai-hub-models" / "Qwen3-VL-4B", genie_config=GENIE, metadata=vision)
    helper = home / "ai-engine-direct-helper" / "samples" / "genie" / "python" / "models"
    bundle(helper / "llama3.2-3b", config=GENIE, prompt={})
    bundle(helper / "Phi-3.5-mini")  # the helper's folder without a download: no configuration
    studio = home / ".lmstudio" / "models" / "lmstudio-community" / "Tiny-GGUF"
    studio.mkdir(parents=True)
    write_tiny_gguf(studio / "Tiny-1B-Q4_0.gguf")
    write_tiny_gguf(studio / "mmproj-Tiny-1B.gguf")
    write_tiny_gguf(studio / "Split-00001-of-00002.gguf")
    write_tiny_gguf(studio / "Split-00002-of-00002.gguf")
    ollama_model(home / ".ollama" / "models", "library/tiny/1b")
    for data in (".config", "Library/Application Support", "AppData/Roaming"):
        bundle(home / data / "anythingllm-desktop" / "storage" / "models" / "llama_v3_2_3b_chat_8k", genie_config=GENIE)


def bundle(folder: Path, **documents: Any) -> Path:
    folder.mkdir(parents=True)
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "part_1_of_1.bin").write_bytes(b"\x01" * 1000)
    return folder


def ollama_model(models: Path, name: str, *, host: str = "registry.ollama.ai", **gguf: Any) -> Path:
    """A model with its manifest and blob. Returns the blob."""
    (models / "blobs").mkdir(parents=True, exist_ok=True)
    new = write_tiny_gguf(models / "blobs" / "new", **gguf)
    digest = hashlib.sha256(new.read_bytes()).hexdigest()
    blob = new.replace(models / "blobs" / f"sha256-{digest}")
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{'1' * 64}", "size": 1},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": blob.stat().st_size},
    ]
    manifest = models / "manifests" / host / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": layers}), encoding="utf-8")
    return blob


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*"))}
