"""Which GGUF model of a repository: the one of the wanted number format, or the best one that fits into the memory.

The rule is in docs/models.md. A model that is split into several files (NAME-00001-of-00003.gguf) is one choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from msgspec import Struct

from gateway.bundles.disk import megabytes
from gateway.errors import BundleError, cut

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.IGNORECASE)
_OTHER = ("mmproj", "imatrix")  # files of a repository that are no model: the part for pictures, statistics
_SHOWN = 8  # files in a message
#: Number formats, the first choice first -> bytes of the bundle for each byte of the file (see docs/models.md)
_GROWTH = {
    **{"Q4_K_M": 1.4, "Q4_0": 1.2, "Q4_K_S": 1.4, "Q4_1": 1.2},
    **{"Q5_K_M": 1.9, "Q5_K_S": 1.9, "Q5_0": 1.7, "Q5_1": 1.7, "Q6_K": 1.6, "Q8_0": 1.1},
    **{"Q3_K_L": 2.0, "Q3_K_M": 1.9, "Q3_K_S": 1.8, "IQ4_NL": 2.1, "IQ4_XS": 2.2, "Q2_K": 2.8},
    **{"F16": 0.6, "BF16": 0.6, "F32": 0.3},
}
_FORMAT = re.compile(r"(?:UD-)?(?:I?Q|TQ|BF|FP?|MXFP|NVFP)\d.*", re.IGNORECASE)
_FITS = 0.75  # of the machine's memory; the rest is for the conversation, the system and other programs
_ALIASES = {"FP16": "F16", "FP32": "F32"}


class GgufModel(Struct, frozen=True):
    """One model of a repository.

    Args:
        files: their paths, the first part first.
        bytes: of all files.
    """

    files: tuple[str, ...]
    bytes: int

    @property
    def shown(self) -> str:
        """The path of the first file, and the size: "a/M-Q4_0.gguf (2.1 GB)"."""
        parts = f" in {len(self.files)} files" if len(self.files) > 1 else ""
        return f"{cut(self.files[0], 100)} ({megabytes(self.bytes)}{parts})"


def gguf_models(sizes: Mapping[str, int]) -> list[GgufModel]:
    """The models among the files of a repository, by path. A model of which a part is missing is left out."""
    paths = [path for path in sorted(sizes) if path.lower().endswith(".gguf") and not _is_other(path)]
    models = []
    for path in paths:
        part = _PART.fullmatch(path[:-5])
        files: tuple[str, ...] = (path,)
        if part is not None:
            count, end = int(part["count"]), path[-5:]
            files = tuple(f"{part['stem']}-{number:05}-of-{part['count']}{end}" for number in range(1, count + 1))
        if path == files[0] and all(file in sizes for file in files):
            models.append(GgufModel(files, sum(sizes[file] for file in files)))
    return models


def choose_gguf(repo: str, models: list[GgufModel], wanted: str, memory: int) -> GgufModel:
    """The model to download.

    Args:
        wanted: a file, any part of a model, a number format, as "Q4_K_M", or "": the best one.
        memory: bytes of this machine.
    Raises BundleError with the models and their sizes if there is none, or more than one.
    """
    if wanted.lower().endswith(".gguf"):
        found = [model for model in models if wanted in model.files]
    elif wanted:
        found = [model for model in models if _has_format(model, wanted)]
    else:
        found = _best(repo, models, memory)
    if len(found) == 1:
        return found[0]
    what = f"no GGUF file for {cut(wanted, 100)}" if wanted else "no GGUF file in a format that is chosen by itself"
    if found:
        what = f"{len(found)} GGUF files for {cut(wanted, 100) or 'the first choice'}"
        models = found
    raise BundleError(f"{repo} has {what}.{listed(models)} Write hf:{repo}/FILE.gguf.")


def listed(models: list[GgufModel]) -> str:
    """A sentence with the models and their sizes; "": there are none."""
    more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
    return f" It has {', '.join(model.shown for model in models[:_SHOWN])}{more}." if models else ""


def _best(repo: str, models: list[GgufModel], memory: int) -> list[GgufModel]:
    """The models of the first format that fits. Raises BundleError if none of a known format does."""
    needs = {name: growth for name, growth in _GROWTH.items() if any(_has_format(model, name) for model in models)}
    for name, growth in needs.items():
        fitting = [model for model in models if _has_format(model, name) and model.bytes * growth <= _FITS * memory]
        if fitting:
            return fitting
    if not needs:
        return models if len(models) == 1 else []
    least = min(model.bytes * growth for name, growth in needs.items() for model in models if _has_format(model, name))
    raise BundleError(
        f"{repo} has no GGUF file that fits: the smallest bundle needs {megabytes(int(least))}, and {_FITS:.0%} of the "
        f"memory of this machine are {megabytes(int(_FITS * memory))}.{listed(models)} Choose a smaller model."
    )


def _is_other(path: str) -> bool:
    return any(word in PurePosixPath(path).name.lower() for word in _OTHER)


def _has_format(model: GgufModel, name: str) -> bool:
    """True if the name of the file, or of its folder, ends with the format: "M-Q4_0.gguf", "Q4_0/M-00001-of-2.gguf"."""
    if not _FORMAT.fullmatch(name):
        return False
    path = PurePosixPath(model.files[0])
    stem = path.stem if len(model.files) == 1 else path.stem[: -len("-00001-of-00001")]
    names = {name.upper(), *(alias for alias, of in _ALIASES.items() if of == name.upper())}
    ends = re.compile(rf"(?:.*[-._])?(?:{'|'.join(map(re.escape, sorted(names)))})", re.IGNORECASE)
    return bool(ends.fullmatch(stem) or ends.fullmatch(path.parent.name))
