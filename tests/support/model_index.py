"""The documents of AI Hub's public releases and of the Hub's lists, in the form of the real ones, in a ModelServer.

Keys, spelling and nesting are those of release 0.60; the names and figures are ours.
"""

from __future__ import annotations

import json
from typing import Any

from tests.support.model_server import ModelServer

X_ELITE, X_PLUS, X2_ELITE = (f"qualcomm-snapdragon-{name}" for name in ("x-elite", "x-plus-8-core", "x2-elite"))
PHONE = "qualcomm-snapdragon-8-elite-gen5"
PLATFORM = {
    "aihm_version": "0.60.0",
    "chipsets": [
        {"name": X_ELITE, "world": "WEBSITE_WORLD_COMPUTE", "htp_version": 73, "soc_model": 60},
        {"name": X_PLUS, "world": "WEBSITE_WORLD_COMPUTE", "htp_version": 73, "soc_model": 60},
        {"name": X2_ELITE, "world": "WEBSITE_WORLD_COMPUTE", "htp_version": 81, "soc_model": 88},
        {"name": PHONE, "world": "WEBSITE_WORLD_MOBILE", "htp_version": 81, "soc_model": 87},
    ],
    "devices": [
        {"name": "Snapdragon X Elite CRD", "chipset": X_ELITE, "form_factor": "FORM_FACTOR_COMPUTE"},
        {"name": "Snapdragon X2 Elite CRD", "chipset": X2_ELITE},
        {"name": "Snapdragon 8 Elite Gen 5 QRD", "chipset": PHONE},
    ],
}


def publish(server: ModelServer, *models: dict[str, Any], release: str = "latest", version: str = "0.60.0") -> None:
    """Write a release with these models (`ai_hub_model`) into the server's bucket."""
    folder = f"qai-hub-models/releases/{release}"
    manifest = {
        "version": version,
        "platform_url": f"{server.url}/{folder}/platform.json",
        "models": [model["manifest"] for model in models],
    }
    put(server, f"{folder}/manifest.json", manifest)
    put(server, f"{folder}/platform.json", PLATFORM)


def ai_hub_model(
    server: ModelServer,
    title: str,
    *,
    chipsets: tuple[str, ...] = (X_ELITE, X2_ELITE, PHONE),
    runtimes: tuple[str, ...] = ("RUNTIME_GENIEX_QAIRT", "RUNTIME_GENIE"),
    precision: str = "PRECISION_W4A16",
    tags: tuple[str, ...] = ("MODEL_TAG_LLM",),
    licence: str = "MODEL_LICENSE_APACHE_2_0",
    shared: bool = True,
    speed: float = 0.0,
    zip_bytes: int = 100,
) -> dict[str, Any]:
    """Write a model's documents and zips. `shared` False: listed, but its licence forbids to offer the files."""
    id = title.lower().replace("-", "_").replace(".", "_")
    folder = f"qai-hub-models/models/{id}/releases/v0.60.0"
    urls = {name: f"{server.url}/{folder}/{name}.json" for name in ("info", "perf")}
    put(server, f"{folder}/info.json", {"id": id, "license_type": licence, "model_type_llm": True, "status": None})
    put(server, f"{folder}/perf.json", {"model_id": id, "performance_metrics": _metrics(runtimes, precision, speed)})
    if shared:
        urls["release_assets"] = f"{server.url}/{folder}/release-assets.json"
        assets = [
            _asset(server, folder, id, runtime, precision, chipset, zip_bytes)
            for runtime in runtimes
            for chipset in chipsets
        ]
        put(server, f"{folder}/release-assets.json", {"aihm_version": "0.60.0", "model_id": id, "assets": assets})
    entry = {
        "id": id,
        "display_name": title,
        "domain": "MODEL_DOMAIN_GENERATIVE_AI",
        "manifest_urls": urls,
        "supported_runtimes": list(runtimes),
        "supported_chipsets": list(chipsets),
        "tags": list(tags),
        "use_case": "MODEL_USE_CASE_TEXT_GENERATION",
    }
    return {"manifest": entry, "folder": folder}


def put(server: ModelServer, path: str, document: Any) -> None:
    server.files[path] = json.dumps(document).encode()


def put_hub_list(server: ModelServer, owner: str, *repositories: dict[str, Any]) -> None:
    """The Hub's answer to a list of all models of `owner`."""
    put(server, f"api/models?author={owner}&limit=1000", repositories)


def put_card(server: ModelServer, repository: str, chipset: str, url: str) -> None:
    """The release_assets.json in the repository of a model's card."""
    asset = {"genie": {"download_url": url, "tool_versions": {"qairt": "2.45.0.260326154327"}}}
    card = {"version": "0.60.0", "precisions": {"w4a16": {"chipset_assets": {chipset: asset}}}}
    put(server, f"{repository}/resolve/main/release_assets.json", card)


def _asset(
    server: ModelServer, folder: str, id: str, runtime: str, precision: str, chipset: str, zip_bytes: int
) -> dict[str, Any]:
    short = [text.partition("_")[2].lower() for text in (runtime, precision)]
    path = f"{folder}/{'-'.join([id, *short, chipset.replace('-', '_')])}.zip"
    server.files[path] = bytes(zip_bytes)
    return {
        "precision": precision,
        "runtime": runtime,
        "chipset": chipset,
        "download_url": f"{server.url}/{path}",
        "tool_versions": {"qairt": "2.45.0.260326154327"},
        "uncompressed_size": str(zip_bytes),
    }


def _metrics(runtimes: tuple[str, ...], precision: str, speed: float) -> list[dict[str, Any]]:
    """Half the speed for the last runtime, and double the speed on X2 Elite."""
    return [
        {
            "precision": precision,
            "runtime": runtime,
            "device": device,
            "llm_metrics": [
                {
                    "context_length": context,
                    "tokens_per_second": speed * factor / (1 + number) * 4096 / context,
                    "time_to_first_token_range_milliseconds": {"min": 100.0, "max": 100.0 * context / 128},
                }
                for context in (4096, 8192)
            ],
        }
        for number, runtime in enumerate(runtimes)
        for device, factor in (("Snapdragon X Elite CRD", 1), ("Snapdragon X2 Elite CRD", 2))
        if speed
    ]
