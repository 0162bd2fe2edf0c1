"""Writes model packages of ONNX Runtime: a manifest, variants, and a tokenizer that they share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

DIGEST = "ab" * 32
NPU = {"ep": "QNNExecutionProvider", "device": "npu", "compatibility_string": "v2:6:2.51.0:5.51.0:73:60:0:0"}
X2_ELITE = NPU | {"compatibility_string": "v2:6:2.51.0:5.51.0:81:88:0:0"}
CPU = {"ep": "CPUExecutionProvider", "device": "cpu"}


def write_package(folder: Path, bundle: Path, variants: dict[str, Any], *, external: bool = False) -> Path:
    """A package whose variants are `bundle` without its tokenizer. `external`: the component has its own folder."""
    component_folder = folder / "models" / "model" if external else folder
    for name, variant in variants.items():
        variant_path = component_folder / variant.get("variant_directory", name)
        shutil.copytree(bundle, variant_path, ignore=shutil.ignore_patterns("tokenizer*"))
        config = json.loads((bundle / "genai_config.json").read_text(encoding="utf-8"))
        config["model"]["tokenizer_dir"] = f"sha256:{DIGEST}"
        (variant_path / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    asset = folder / "shared_assets" / f"sha256-{DIGEST}"
    asset.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundle / name, asset)
    component: Any = {"variants": variants}
    if external:
        (component_folder / "component.json").write_text(json.dumps(component), encoding="utf-8")
        component = "models/model"
    return write_manifest(folder, components={"model": component})


def write_manifest(folder: Path, **content: Any) -> Path:
    (folder / "manifest.json").write_text(json.dumps({"schema_version": "1.0", **content}), encoding="utf-8")
    return folder
