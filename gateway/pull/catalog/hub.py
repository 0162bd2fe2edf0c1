"""Models for the NPU on the Hugging Face Hub: Qualcomm's cards, and repositories that hold the files themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Literal

from msgspec import Struct, field

from gateway.pull.catalog.ai_hub import LAYOUTS, NOT_SERVED, Listed
from gateway.pull.catalog.ai_hub_wire import ToolVersions
from gateway.pull.catalog.entry import Entry, parameters_of, same_key, short_name
from gateway.pull.catalog.fetch import Reader, Unreachable, Unreadable
from gateway.qnn.chips import CHIPS, Chip

SOURCE = "Hugging Face"
_RUNTIMES = ("geniex_qairt", "genie")  # in release_assets.json of a card; the better first
_TASKS = {"text-generation": "text", "image-text-to-text": "vision"}
_ONNX_OWNER, _ONNX_END = "llmware", "-onnx-qnn"  # for X Elite, by the owner's own documentation
_FOLDERS = "yichqian/geniex-qairt-models"  # one bundle in each folder, for X Elite


class _Repository(Struct, frozen=True):
    id: str
    pipeline_tag: str | None = None
    tags: list[str] = field(default_factory=list)

    @property
    def licence(self) -> str:
        return next((tag.removeprefix("license:") for tag in self.tags if tag.startswith("license:")), "")


class _File(Struct, frozen=True):
    path: str
    type: str = "file"
    size: int = 0


class _CardAsset(Struct, frozen=True):
    download_url: str = ""
    tool_versions: ToolVersions | None = None


class _CardPrecision(Struct, frozen=True):
    chipset_assets: dict[str, dict[str, _CardAsset]] = field(default_factory=dict)


class _Card(Struct, frozen=True):
    precisions: dict[str, _CardPrecision] = field(default_factory=dict)


def read_hub(base: str, reader: Reader, known: Collection[str]) -> Listed:
    """List the models for laptops.

    Args:
        known: keys of models (`same_key`) that AI Hub lists: their cards have the same links and are not read.
    Raises Unreadable if the Hub cannot be reached, or refuses every list.
    """
    parts: list[Callable[[], list[Entry]]] = [
        lambda: _cards(base, reader, known),
        lambda: _onnx_repositories(base, reader),
        lambda: _folders(base, reader),
    ]
    entries: list[Entry] = []
    problems: list[str] = []
    for part in parts:
        try:
            entries += part()
        except Unreachable:
            raise
        except Unreadable as error:
            problems.append(str(error))
    if len(problems) == len(parts):
        raise Unreadable(problems[0])
    return Listed(entries, problems)


def _repositories(base: str, reader: Reader, owner: str) -> list[_Repository]:
    return reader.json(f"{base}/api/models?author={owner}&limit=1000", list[_Repository])


def _cards(base: str, reader: Reader, known: Collection[str]) -> list[Entry]:
    """The bundles that Qualcomm's cards link to. A card without links is of a model that may not be distributed."""
    repositories = [
        each
        for each in _repositories(base, reader, "qualcomm")
        if each.pipeline_tag in _TASKS and same_key(_name(each)) not in known
    ]

    def card(repository: _Repository) -> _Card:
        try:
            return reader.json(f"{base}/{repository.id}/resolve/main/release_assets.json", _Card)
        except Unreadable:
            return _Card()

    with ThreadPoolExecutor(8) as pool:
        return [
            entry
            for repository, found in zip(repositories, pool.map(card, repositories), strict=True)
            for chip in CHIPS
            for entry in _of_card(repository, found, chip)
        ]


def _of_card(repository: _Repository, card: _Card, chip: Chip) -> Iterator[Entry]:
    for precision, assets in card.precisions.items():
        links = (
            assets.chipset_assets[chipset][runtime]
            for chipset in chip.ai_hub_names
            if chipset in assets.chipset_assets
            for runtime in _RUNTIMES
            if runtime in assets.chipset_assets[chipset]
        )
        if asset := next(links, None):
            qairt = (asset.tool_versions and asset.tool_versions.qairt) or ""
            yield _entry(
                repository, _name(repository), chip=chip.name, precision=precision, url=asset.download_url, qairt=qairt
            )


def _onnx_repositories(base: str, reader: Reader) -> list[Entry]:
    found = [each for each in _repositories(base, reader, _ONNX_OWNER) if each.id.endswith(_ONNX_END)]
    with ThreadPoolExecutor(8) as pool:
        sizes = pool.map(lambda each: sum(file.size for file in _files(base, reader, each.id)) or None, found)
        return [
            _entry(each, _name(each).removesuffix(_ONNX_END), layout="pipeline", url=f"hf:{each.id}", bytes=size)
            for each, size in zip(found, sizes, strict=True)
        ]


def _folders(base: str, reader: Reader) -> list[Entry]:
    """The bundles in the folders of one repository: each folder with a genie_config.json."""
    sizes: dict[str, int] = {}
    bundles = set()
    for file in reader.json(f"{base}/api/models/{_FOLDERS}/tree/main?recursive=true", list[_File]):
        folder = PurePosixPath(file.path).parts[0]
        sizes[folder] = sizes.get(folder, 0) + file.size
        if PurePosixPath(file.path).name == "genie_config.json":
            bundles.add(folder)
    repository = _Repository(_FOLDERS)
    return [
        _entry(repository, folder.removesuffix("_aihub"), url=f"hf:{_FOLDERS}/{folder}", bytes=sizes[folder] or None)
        for folder in sorted(bundles)
    ]


def _files(base: str, reader: Reader, repository: str) -> list[_File]:
    try:
        return reader.json(f"{base}/api/models/{repository}/tree/main?recursive=true", list[_File])
    except Unreadable:
        return []


def _name(repository: _Repository) -> str:
    return repository.id.rpartition("/")[2]


def _entry(repository: _Repository, title: str, *, chip: str = "x-elite", **known: object) -> Entry:
    is_vision = repository.pipeline_tag == "image-text-to-text" or "vl" in title.lower().replace("_", "-").split("-")
    kind: Literal["text", "vision"] = "vision" if is_vision else "text"
    values = {
        "name": short_name(title),
        "title": title,
        "id": repository.id,
        "chip": chip,
        "source": SOURCE,
        "kind": kind,
        "layout": LAYOUTS[kind],
        "parameters": parameters_of(title),
        "licence": repository.licence,
        "note": NOT_SERVED[kind],
    }
    return Entry(**(values | known))  # type: ignore[arg-type]
