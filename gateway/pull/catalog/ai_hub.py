"""The models of AI Hub's newest public release, from its manifests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

from msgspec.structs import replace

from gateway.bundles.identify import Layout
from gateway.pull.catalog.ai_hub_wire import Asset, Assets, Info, Manifest, Measured, Model, Perf, Platform
from gateway.pull.catalog.entry import Entry, parameters_of, short_name
from gateway.pull.catalog.fetch import Reader, Unreachable, Unreadable
from gateway.qnn.chips import CHIPS, Chip

SOURCE = "AI Hub"
FALLBACK = "v0.60.0"  # the release to read if there is no `latest`
_KNOWN_MAJOR = "0"  # of the releases whose form is known
_GENIE = ("RUNTIME_GENIEX_QAIRT", "RUNTIME_GENIE")  # the better first
_ENCODER = "RUNTIME_PRECOMPILED_QNN_ONNX"
_DOMAINS = {"MODEL_DOMAIN_GENERATIVE_AI", "MODEL_DOMAIN_MULTIMODAL"}
_T = TypeVar("_T")
_Kind = Literal["text", "vision", "embedding"]

_EXPORT = """\
pip install "qai-hub-models[{extra}]"
qai-hub configure --api_token TOKEN
python -m qai_hub_models.models.{id}.export --chipset {chipset} --skip-profiling --output-dir {name}
npu-gateway pull ./{name}"""
LAYOUTS: dict[_Kind, Layout] = {"text": "genie", "vision": "vision", "embedding": "encoder"}
NOT_SERVED: dict[_Kind, str] = {
    "text": "",
    "vision": "A model for pictures: the gateway serves text only.",
    "embedding": "An embedding model: the gateway has no embeddings yet.",
}


class Listed(NamedTuple):
    """What a server lists, and one sentence for each thing that could not be read."""

    entries: list[Entry]
    problems: list[str]


class _Documents(NamedTuple):
    assets: Assets
    perf: Perf
    info: Info


def read_ai_hub(base: str, reader: Reader) -> Listed:
    """List the models for laptops. Raises Unreadable if there is no manifest."""
    problems: list[str] = []
    manifest, folder = _manifest(f"{base}/qai-hub-models/releases", reader)
    if (manifest.version or _KNOWN_MAJOR).partition(".")[0] != _KNOWN_MAJOR:
        problems.append(f"has release {manifest.version}, which is newer than this version of the gateway knows")
    try:
        platform = reader.json(f"{folder}/platform.json", Platform)
    except Unreadable as error:
        platform = Platform([])
        problems.append(str(error))
    names = {chip: _chipset_names(chip, platform) for chip in CHIPS}
    wanted = [model for model in manifest.models if _may_generate(model)]
    found: list[Entry] = []
    unread: list[str] = []
    with ThreadPoolExecutor(8) as pool:
        for model, documents in zip(wanted, pool.map(lambda each: _documents(each, reader), wanted), strict=True):
            if isinstance(documents, str):
                unread.append(f"{model.id} {documents}")
            else:
                found += _entries(model, documents, names, platform)
        sizes = dict(
            zip(urls := sorted({entry.url for entry in found} - {""}), pool.map(reader.size, urls), strict=True)
        )
    if unread:
        problems.append(f"lists {len(unread)} of {len(wanted)} models that could not be read: {unread[0]}")
    return Listed([replace(entry, bytes=sizes.get(entry.url)) for entry in found], problems)


def _manifest(releases: str, reader: Reader) -> tuple[Manifest, str]:
    try:
        return reader.json(f"{releases}/latest/manifest.json", Manifest), f"{releases}/latest"
    except Unreachable:
        raise
    except Unreadable as error:
        try:
            return reader.json(f"{releases}/{FALLBACK}/manifest.json", Manifest), f"{releases}/{FALLBACK}"
        except Unreadable:
            raise error from None


def _chipset_names(chip: Chip, platform: Platform) -> tuple[str, ...]:
    """AI Hub's names of the chip, the best first. Names that we do not know are found by number and version."""
    by_number = [
        chipset.name
        for chipset in platform.chipsets
        if chipset.soc_model in chip.soc_models
        and chipset.htp_version == chip.architecture
        and chipset.world == "WEBSITE_WORLD_COMPUTE"
    ]
    return tuple(dict.fromkeys((*chip.ai_hub_names, *by_number)))


def _may_generate(model: Model) -> bool:
    if model.supported_runtimes:
        return any(name in _GENIE for name in model.supported_runtimes) or _kind(model) == "embedding"
    return model.domain in _DOMAINS


def _documents(model: Model, reader: Reader) -> _Documents | str:
    """The documents of a model, or why its list of files cannot be read. Speeds and licence may be missing."""
    urls = model.manifest_urls
    try:
        assets = reader.json(urls.release_assets, Assets) if urls.release_assets else Assets()
    except Unreadable as error:
        return str(error)
    return _Documents(assets, _optional(reader, urls.perf, Perf), _optional(reader, urls.info, Info))


def _optional(reader: Reader, url: str | None, kind: Callable[[], _T]) -> _T:
    try:
        return reader.json(url, kind) if url else kind()  # type: ignore[arg-type]
    except Unreadable:
        return kind()


def _entries(
    model: Model, documents: _Documents, names: dict[Chip, tuple[str, ...]], platform: Platform
) -> Iterator[Entry]:
    """One entry for each chip and precision."""
    if not model.manifest_urls.release_assets and not (model.supported_runtimes or documents.info.model_type_llm):
        return  # an older release, and no language model
    for chip, chipsets in names.items():
        devices = {device.name: device.chipset for device in platform.devices}
        devices |= {chipset.reference_device or "": chipset.name for chipset in platform.chipsets}
        speeds = [each for each in documents.perf.performance_metrics if devices.get(each.device or "") in chipsets]
        base = _described(model, documents.info, chip)
        if not model.manifest_urls.release_assets:
            if _is_for(chipsets, model.supported_chipsets or documents.perf.supported_chipsets):
                yield _with_speed(_exported(base, model, chipsets), speeds)
            continue
        for asset in _best_assets(documents.assets.assets, chipsets, _runtimes(base)):
            entry = replace(
                base,
                precision=(asset.precision or "").removeprefix("PRECISION_").lower(),
                url=asset.download_url or "",
                qairt=(asset.tool_versions and asset.tool_versions.qairt) or "",
            )
            yield _with_speed(entry, speeds)


def _runtimes(entry: Entry) -> Sequence[str]:
    return (_ENCODER,) if entry.kind == "embedding" else _GENIE


def _best_assets(assets: Iterable[Asset], chipsets: Sequence[str], runtimes: Sequence[str]) -> Iterator[Asset]:
    """For each precision the asset with the best chipset, then the best runtime."""
    best: dict[str, tuple[int, int, Asset]] = {}
    for asset in assets:
        if asset.chipset in chipsets and asset.runtime in runtimes and asset.download_url:
            rank = (chipsets.index(asset.chipset), runtimes.index(asset.runtime))
            known = best.get(asset.precision or "")
            if known is None or rank < known[:2]:
                best[asset.precision or ""] = (*rank, asset)
    return (asset for *_, asset in best.values())


def _is_for(chipsets: Sequence[str], supported: list[str] | None) -> bool:
    return not supported or any(name in chipsets for name in supported)


def _kind(model: Model) -> _Kind:
    tags, words = model.tags or [], re.split(r"[^a-z0-9]+", model.id.lower())
    if "MODEL_TAG_VLM" in tags or model.domain == "MODEL_DOMAIN_MULTIMODAL" or "vl" in words:
        return "vision"
    return "embedding" if "embed" in words else "text"


def _described(model: Model, info: Info, chip: Chip) -> Entry:
    title = model.display_name or model.id
    kind = _kind(model)
    return Entry(
        name=short_name(title),
        title=title,
        id=model.id,
        kind=kind,
        layout=LAYOUTS[kind],
        chip=chip.name,
        source=SOURCE,
        parameters=parameters_of(title) or _parameters(info),
        licence=_licence(info.license_type or ""),
        licence_url=info.license_url or "",
        note=NOT_SERVED[kind],
    )


def _licence(name: str) -> str:
    """ "apache-2.0" for MODEL_LICENSE_APACHE_2_0."""
    return re.sub(r"(\d)_(\d)", r"\1.\2", name.removeprefix("MODEL_LICENSE_").lower()).replace("_", "-")


def _parameters(info: Info) -> float | None:
    for detail in info.technical_details:
        if detail.key == "Number of parameters":
            return parameters_of(detail.string_value or "")
    return None


def _exported(entry: Entry, model: Model, chipsets: Sequence[str]) -> Entry:
    commands = _EXPORT.format(
        extra=model.id.replace("_", "-"), id=model.id, chipset=_export_chipset(model, chipsets), name=entry.name
    )
    note = entry.note or "Its licence forbids Qualcomm to offer the file: export it yourself (2 to 3 hours)."
    return replace(entry, export=commands, note=note, precision="w4a16")


def _export_chipset(model: Model, chipsets: Sequence[str]) -> str:
    return next((name for name in chipsets if name in (model.supported_chipsets or [])), chipsets[0])


def _with_speed(entry: Entry, measured: Iterable[Measured]) -> Entry:
    """The entry with the fastest published speed of its precision, and its longest context."""
    for each in measured:
        if (each.precision or "").removeprefix("PRECISION_").lower() != entry.precision or each.runtime not in _GENIE:
            continue
        for speed in each.llm_metrics or []:
            if (speed.desired_compute_unit or "npu") != "npu":
                continue
            entry = replace(entry, context=max(entry.context or 0, speed.context_length or 0) or None)
            if (speed.tokens_per_second or 0) > (entry.tokens_per_s or 0):
                range_ms = speed.time_to_first_token_range_milliseconds
                ttft = (range_ms.min, range_ms.max) if range_ms and range_ms.min and range_ms.max else None
                entry = replace(entry, tokens_per_s=speed.tokens_per_second, ttft_ms=ttft)
    return entry
