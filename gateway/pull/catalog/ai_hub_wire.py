"""The documents of AI Hub's public releases, as far as the catalogue reads them. They are protobuf messages in JSON."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

_Text = str | None


class Urls(Struct, frozen=True):
    info: _Text = None
    perf: _Text = None
    release_assets: _Text = None  # missing: the licence does not allow to distribute the model


class Model(Struct, frozen=True):
    """One model of manifest.json. The lists are empty in releases before 0.56."""

    id: str
    display_name: _Text = None
    domain: _Text = None
    manifest_urls: Urls = Urls()
    supported_runtimes: list[str] | None = None
    supported_chipsets: list[str] | None = None
    tags: list[str] | None = None


class Manifest(Struct, frozen=True):
    models: list[Model]
    version: _Text = None


class Chipset(Struct, frozen=True):
    name: str
    world: _Text = None
    htp_version: int | None = None
    soc_model: int | None = None
    reference_device: _Text = None


class Device(Struct, frozen=True):
    name: str
    chipset: _Text = None


class Platform(Struct, frozen=True):
    chipsets: list[Chipset]
    devices: list[Device] = field(default_factory=list)


class ToolVersions(Struct, frozen=True):
    qairt: _Text = None


class Asset(Struct, frozen=True):
    """One zip of release-assets.json."""

    runtime: _Text = None
    precision: _Text = None
    chipset: _Text = None
    download_url: _Text = None
    tool_versions: ToolVersions | None = None


class Assets(Struct, frozen=True):
    assets: list[Asset] = field(default_factory=list)


class Range(Struct, frozen=True):
    min: float | None = None
    max: float | None = None


class Speed(Struct, frozen=True):
    context_length: int | None = None
    tokens_per_second: float | None = None
    time_to_first_token_range_milliseconds: Range | None = None
    desired_compute_unit: _Text = None


class Measured(Struct, frozen=True):
    """The speeds of one model on one device. Only language models have `llm_metrics`."""

    runtime: _Text = None
    precision: _Text = None
    device: _Text = None
    llm_metrics: list[Speed] | None = None


class Perf(Struct, frozen=True):
    performance_metrics: list[Measured] = field(default_factory=list)
    supported_chipsets: list[str] | None = None


class Detail(Struct, frozen=True):
    key: str = ""
    string_value: _Text = None
    int_value: int | None = None


class Info(Struct, frozen=True):
    license_type: _Text = None
    license_url: _Text = None
    model_type_llm: bool | None = None
    technical_details: Annotated[list[Detail], Meta(max_length=1000)] = field(default_factory=list)
