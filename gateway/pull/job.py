"""One model on its way from its source into the models folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from gateway.builder.gguf_choice import GgufModel
from gateway.bundles.identify import SOURCES, require_servable
from gateway.bundles.origin import Origin, write_origin
from gateway.bundles.preflight.preflight import Machine
from gateway.errors import BundleError, ConfigError, quote
from gateway.pull.archive import is_zip, unpack
from gateway.pull.catalog.entry import short_name
from gateway.pull.config_edit import UserConfig
from gateway.pull.download import Downloader, Remote
from gateway.pull.examine.original import fetch_tokenizer, without_tokenizer
from gateway.pull.examine.verdict import faults_of
from gateway.pull.hub import Repo, bundle_root, files_in, gguf_model, has_weights, one_remote, read_repo, remotes
from gateway.pull.install import RefusedError, install, link_files, require_fit, require_resources
from gateway.pull.installed.gguf_head import LATER_PART
from gateway.pull.names import fault_of
from gateway.pull.report import Report
from gateway.pull.sources import find_sources
from gateway.pull.spec import CatalogSpec, HubSpec, PathSpec, Spec, UrlSpec
from gateway.qnn.chips import Chip
from gateway.qnn.device import machine_with

WORK = ".pull"
TOKENIZERS = ".tokenizers"  # of bundles that are served where they are
Table = dict[str, Any]


class Surroundings(Struct, frozen=True, kw_only=True):
    """What a pull needs from the command.

    Args:
        say: shows one line to the user.
        find_chip: the chip that the model must run on. Called only for the catalog and for bundles that state a chip.
        build: makes the bundle MODELS/NAME of a source. Raises BundleError.
    """

    user: UserConfig
    report: Report
    say: Callable[[str], None]
    find_chip: Callable[[], Chip]
    build: Callable[[str, str], None]
    downloader: Downloader

    @property
    def models_dir(self) -> Path:
        return self.user.config.models_dir


def work_folder(models_dir: Path, name: str) -> Path:
    return models_dir / WORK / name


def tokenizer_folder(models_dir: Path, name: str) -> Path:
    return models_dir / TOKENIZERS / name


def gguf_path(models_dir: Path, name: str) -> Path:
    return models_dir / f"{name}.gguf"


class Job:
    """One model on its way.

    Args:
        origin: what is known before the download. Its source is what the user wrote.
    """

    def __init__(self, name: str, origin: Origin, around: Surroundings) -> None:
        self.name, self.text, self.licence, self.around = name, origin.source, origin.licence, around
        self._origin = origin
        self.folder = around.models_dir / name
        self.work = work_folder(around.models_dir, name)
        self.gguf = gguf_path(around.models_dir, name)
        self.url = ""
        self.is_complete = True  # no file of the model is missing

    def obtain(self, spec: Spec) -> Table:
        """Get the model. Returns its table."""
        match spec:
            case PathSpec(path=path):
                return self._from_path(path)
            case UrlSpec(url=url):
                return self._from_url(url)
            case HubSpec():
                return self._from_hub(spec)
            case CatalogSpec(name=name):
                raise ConfigError(f"There is no model {quote(name)}. `npu-gateway catalog` lists the models.")

    def has_source(self, source: str, spec: Spec) -> bool:
        """True if a table with this `source` is the same model."""
        wanted = {str(self.gguf), self.text, str(spec.path) if isinstance(spec, PathSpec) else self.text}
        return source in wanted or (isinstance(spec, CatalogSpec) and bool(source))

    def clean_if_empty(self) -> None:
        """Remove a download of which no byte came."""
        files = [path for path in self.work.rglob("*") if path.is_file() and path.name != "url"]
        if not any(path.stat().st_size for path in files if path.suffix not in (".json", ".new")):
            self.clean()

    def clean(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    # --- the kinds of sources

    def _from_path(self, path: Path) -> Table:
        if path.is_dir():
            found = require_servable(path)
            if found.layout in SOURCES:
                return self._built_from(str(_gguf_in(path) or path))
            require_fit(found, self.name, self._machine)
            self.around.say(f"{self.name} is served where it is, in {path}; nothing is copied")
            return self._in_place(Path(str(found.root)))
        try:
            is_archive = is_zip(path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror or error}.") from error
        if not is_archive:
            return self._built_from(str(path))
        self._licence()
        size = path.stat().st_size
        require_resources(self.around.models_dir, size, self.name, copies=1)
        return self._unpacked(path, self._from(str(path)))

    def _in_place(self, root: Path) -> Table:
        """The table of a bundle that is served where it is. What it lacks is put into the models folder."""
        table = {"path": _relative(root, self.around.models_dir)}
        if without_tokenizer(root) and self._fetch_tokenizer(root, tokenizer_folder(self.around.models_dir, self.name)):
            table["tokenizer"] = f"{TOKENIZERS}/{self.name}"
        self._note_faults(root, has_tokenizer="tokenizer" in table)
        return table

    def _fetch_tokenizer(self, root: Path, folder: Path) -> bool:
        return fetch_tokenizer(root, folder, self.around.downloader, self.around.report, self.around.say)

    def _from_url(self, url: str) -> Table:
        file = unquote(urlsplit(url).path).rpartition("/")[2]
        if not file or fault_of(file):
            file = f"{self.name}.zip"
        return self._from_remote(Remote(url=url, name=file))

    def _from_remote(self, remote: Remote) -> Table:
        """A zip or a GGUF file."""
        self._begin(remote.url)
        self._licence()
        file = self.work / remote.name
        self.around.downloader.fetch(remote, file, self.around.report, self._admit)
        with file.open("rb") as opened:
            is_gguf = opened.read(4) == b"GGUF"
        if is_gguf:
            return self.built(file)
        if not is_zip(file):
            self.clean()
            raise RefusedError(
                f"{remote.name} is neither a zip nor a GGUF file, but perhaps a page. Open {quote(remote.url)} in a "
                "browser, download the file, and pull it from the disk."
            )
        return self._unpacked(file, self._from(remote.url))

    def _from_hub(self, spec: HubSpec) -> Table:
        hub = find_sources().hub
        repo = read_repo(hub, spec)
        self.licence = self.licence or repo.licence
        if spec.path.endswith(".zip"):
            return self._from_remote(one_remote(hub, repo, spec.path))
        is_gguf = bool(spec.quant) or spec.path.lower().endswith(".gguf")
        root = None if is_gguf else bundle_root(repo, spec)
        if root is not None:
            return self._from_files(hub, repo, root)
        if not is_gguf and has_weights(repo, spec):
            return self._built_from_hub(repo, spec, spec.path)
        if model := gguf_model(repo, spec):
            return self._from_gguf(hub, repo, spec, model)
        if any(file.path == "release_assets.json" for file in repo.files):
            name = short_name(repo.name.rpartition("/")[2])
            raise BundleError(f"{repo.name} has only links to the files of AI Hub. Run `npu-gateway pull {name}`.")
        hint = "`npu-gateway catalog` lists models."
        raise BundleError(f"{repo.name} has no bundle, no GGUF file and no safetensors weights. {hint}")

    def _from_gguf(self, hub: str, repo: Repo, spec: HubSpec, model: GgufModel) -> Table:
        """One file is kept in the models folder, the parts of a split model in the cache of the hub's client."""
        if spec.path != model.files[0]:
            self.around.say(f"the chosen file of {repo.name} is {model.shown}")
        if len(model.files) == 1:
            return self._from_remote(one_remote(hub, repo, model.files[0]))
        require_resources(self.around.models_dir, model.bytes, self.name)
        return self._built_from_hub(repo, spec, model.files[0])

    def _built_from_hub(self, repo: Repo, spec: HubSpec, path: str) -> Table:
        self._licence()
        revision = "" if spec.revision == "main" else f"@{spec.revision}"
        return self._built_from(f"hf:{repo.name}{f'/{path}' if path else ''}{revision}")

    def _from_files(self, hub: str, repo: Repo, root: str) -> Table:
        """A bundle that lies in a repository file by file."""
        files = files_in(repo, root)
        wanted = remotes(hub, repo, files, root)
        url = f"{hub}/{repo.name}/tree/{repo.commit}/{root}".rstrip("/")
        self._begin(url)
        self._licence()
        total = sum(remote.size for remote in wanted.values())
        require_resources(self.around.models_dir, total, self.name, copies=1)
        done = 0
        for path, remote in wanted.items():
            report = partial(_report_part, self.around.report, f"downloading {repo.name}", done, total)
            self.around.downloader.fetch(remote, self.work / "files" / path, report)
            done += remote.size
        origin = self._from(url)
        return self._installed(lambda building: link_files(self.work / "files", building, wanted), origin)

    # --- the last steps

    def _from(self, url: str) -> Origin:
        return replace(self._origin, url=url, licence=self.licence)

    def _unpacked(self, archive: Path, origin: Origin) -> Table:
        return self._installed(lambda building: unpack(archive, building, self.around.report), origin)

    def _installed(self, fill: Callable[[Path], None], origin: Origin) -> Table:
        def fill_then_report(building: Path) -> None:
            fill(building)
            if root := without_tokenizer(building):
                self._fetch_tokenizer(root, root)
            self.around.report(f"computing the hashes of {self.name}", 0, 0)  # seconds for each GB

        try:
            install(self.folder, fill_then_report, origin, self._machine)
        except RefusedError:
            self.clean()
            raise
        self._note_faults(self.folder)
        return {"path": self.name}

    def _note_faults(self, root: Path, *, has_tokenizer: bool = False) -> None:
        faults = faults_of(self.name, root, has_tokenizer=has_tokenizer)
        self.is_complete = not faults
        for line in faults:
            self.around.say(line)

    def built(self, weights: Path) -> Table:
        """Build the bundle of a GGUF file, and keep the file: another version of the gateway builds it again."""
        self.around.build(self.name, str(weights))
        if weights != self.gguf:
            write_origin(self.gguf, self._from(self.url))
            weights.replace(self.gguf)
        return {"source": _relative(self.gguf, self.around.user.file.absolute().parent)}

    def _built_from(self, source: str) -> Table:
        self.around.build(self.name, source)
        return {"source": source}

    def _begin(self, url: str) -> None:
        """Make the folder of the download, without what is left from another address."""
        self.url = url
        note = self.work / "url"
        if self.work.exists() and not (note.is_file() and note.read_text(encoding="utf-8") == url):
            self.clean()
        self.work.mkdir(parents=True, exist_ok=True)
        note.write_text(url, encoding="utf-8")

    def _machine(self) -> Machine:
        try:
            return machine_with(self.around.find_chip())
        except ConfigError:  # the chip of the NPU is not known, so the first load compares it
            return Machine()

    def _licence(self) -> None:
        self.around.say(f"licence of {self.name}: {self.licence or 'not stated by the source'}")

    def _admit(self, size: int) -> None:
        require_resources(self.around.models_dir, size, self.name)


def _report_part(report: Report, stage: str, before: int, total: int, own: str, done: int, _: int) -> None:
    """One file's progress as a part of all."""
    if own.startswith("downloading"):
        report(stage, before + done, total)
    elif own.startswith("waiting"):
        report(own, 0, 0)


def _gguf_in(folder: Path) -> Path | None:
    found = [file for file in sorted(folder.glob("*.gguf")) if not LATER_PART.search(file.name)]
    return found[0] if len(found) == 1 else None


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)
