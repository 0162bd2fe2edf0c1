"""What is known of a bundle before it is served: whether it loads on a machine, what it lacks, what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict

from gateway.bundles.bundle import no_tokenizer
from gateway.bundles.encoder.bundle import files_of_encoder, load_encoder_bundle
from gateway.bundles.genai_config import read_genai_config
from gateway.bundles.genie.config import NAMES, read_config
from gateway.bundles.identify import Layout, identify
from gateway.bundles.preflight.files import File, files_of, weight_bytes
from gateway.bundles.preflight.preflight import Machine, preflight
from gateway.bundles.preflight.stated import Stated, read_stated
from gateway.errors import BundleError
from gateway.pull.catalog.entry import PROOFS
from gateway.pull.examine.corrections import Corrections, correct_genai, correct_genie, write_corrected
from gateway.pull.examine.facts import read_facts
from gateway.pull.examine.target import Target
from gateway.pull.names import fault_of
from gateway.qnn.device import runtime_version

_LARGEST = 16 * 1024 * 1024  # bytes of a small file
_MOST_SMALL = 256 * 1024 * 1024  # bytes of all small files
_SMALL = (".json", ".yaml", ".jinja", ".model", ".txt")
_UNREAD = "metadata.json", "metadata.yaml"  # `read_stated` has searched them


class Verdict(Struct, kw_only=True):
    """`check --json` prints all fields and `loads`. Unknown is null, 0 or "".

    Args:
        target, layout, proven_by: the bundle, its layout, and the test that runs a tiny model of this layout.
        machine: the chip that it was compared with.
        made_for, qairt: the chip and the version of Qualcomm's runtime that the bundle states.
        refused, missing, warnings: sentences. With one of the first two, the bundle does not load.
        corrected: what is read otherwise than the configuration says.
        memory_bytes: that its files need while it is loaded. The caches of conversations come to this.
        context: in tokens.
        binaries, graphs: compiled files, and the networks in them.
        tokens_per_s: published for this model and chip.
        loaded: what a real load here showed; "" if there was none.
        written: the files that `--mend` wrote.
    """

    target: str
    layout: Layout
    proven_by: str = ""
    machine: str = ""
    made_for: str = ""
    qairt: str = ""
    refused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)
    memory_bytes: int = 0
    context: int = 0
    binaries: int = 0
    graphs: int | None = None
    tokens_per_s: float | None = None
    loaded: str = ""
    written: list[str] = field(default_factory=list)

    @property
    def loads(self) -> bool:
        return not self.refused and not self.missing

    def as_dict(self) -> dict[str, Any]:
        return {"loads": self.loads, **asdict(self)}


def examine(target: Target, machine: Machine, *, mended: Path | None = None) -> Verdict:
    """Examine the small files of a folder or zip, and the sizes of the others.

    Args:
        mended: the folder for the corrected configuration; None: it is not written.
    """
    found = identify(target.root)
    files, stated = files_of(found.root), read_stated(found.root)
    verdict = Verdict(
        target=target.name,
        layout=found.layout,
        proven_by=PROOFS.get(found.layout, ""),
        machine=machine.name,
        made_for=stated.target if stated != Stated(qairt=stated.qairt) else "",
        qairt=stated.qairt,
        memory_bytes=weight_bytes(files),
        binaries=sum(file.name.endswith(".bin") for file in files),
    )
    for finding in preflight(found, machine, target.name):
        (verdict.refused if finding.level == "refused" else verdict.warnings).append(finding.text)
    if found.refusal is None:
        try:
            _read_configuration(verdict, files, mended)
        except BundleError as error:
            if error.message not in verdict.refused:
                verdict.refused.append(error.message)
    return verdict


def faults_of(name: str, root: Path, *, has_tokenizer: bool) -> list[str]:
    """One line for each file of a pulled bundle that is missing, or for damage of its context binaries.

    Args:
        has_tokenizer: the model's table names the folder of its tokenizer.
    """
    verdict = examine(Target(name=name, root=root, folder=root, next_to=root.parent), Machine())
    known = no_tokenizer(name, "").message if has_tokenizer else ""
    missing = [f"missing: {sentence}" for sentence in verdict.missing if sentence != known]
    if missing or verdict.layout not in ("genie", "pipeline") or not runtime_version():
        return missing
    try:
        read_facts(root, None)
    except BundleError as error:
        return [f"damaged: {error.message}"]
    return []


def _read_configuration(verdict: Verdict, files: list[File], mended: Path | None) -> None:
    with _small_files(files, verdict.target) as folder:
        names = {file.name for file in files}
        match verdict.layout:
            case "genie":
                corrections = _genie(verdict, folder, names)
            case "pipeline" | "graph":
                corrections = _genai(verdict, folder, names)
            case "text-encoder":
                return _encoder(verdict, folder, names)
            case _:
                return
    verdict.corrected += corrections.sentences
    if mended is not None:
        verdict.written += map(str, write_corrected(mended, corrections))


def _genie(verdict: Verdict, folder: Path, names: set[str]) -> Corrections:
    _, dialog = read_config(next(folder / name for name in NAMES if (folder / name).is_file()))
    verdict.context = dialog.context.size
    inner = {name.rpartition("/")[2] for name in names}
    for name in (dialog.tokenizer.path, *dialog.engine.model.binary.ctx_bins):
        base = PureWindowsPath(name).name
        if base not in inner:
            source = "the original model has it" if name == dialog.tokenizer.path else "download the bundle again"
            verdict.missing.append(f"{base}, which the configuration names: {source}")
    return correct_genie(folder, names)


def _genai(verdict: Verdict, folder: Path, names: set[str]) -> Corrections:
    config = read_genai_config(folder)
    verdict.context = config.context_length
    for name in filter(None, (config.decoder.filename, *(stage.filename for stage in config.decoder.stages))):
        if name.replace("\\", "/") not in names:
            verdict.missing.append(f"{name}, which genai_config.json names: download the bundle again")
    if not config.tokenizer_dir and "tokenizer.json" not in names:
        verdict.missing.append(no_tokenizer(verdict.target, "").message)
    return correct_genai(folder)


def _encoder(verdict: Verdict, folder: Path, names: set[str]) -> None:
    info = load_encoder_bundle(folder).info
    verdict.context = info.longest
    absent = [name for name in files_of_encoder(info) if name not in names]
    verdict.missing += [f"{name}, which every bundle of an encoder has: build it again" for name in absent]


@contextmanager
def _small_files(files: list[File], name: str) -> Iterator[Path]:
    """A folder called `name` with copies of the small files, so that a zip is read as a folder is."""
    with TemporaryDirectory(prefix="npu-gateway-") as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        left = _MOST_SMALL
        for file in files:
            is_small = file.size <= min(_LARGEST, left) and file.name.endswith(_SMALL) and file.name not in _UNREAD
            if is_small and not fault_of(file.name):
                left -= file.size
                with file.entry.open("rb") as opened:
                    (folder / file.name).write_bytes(opened.read(_LARGEST))
        yield folder
