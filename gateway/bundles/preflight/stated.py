"""What the small files of a bundle state about how it was made: for which chip, with which version of QAIRT.

    metadata.json, metadata.yaml     AI Hub: `chipset_attributes`, `tool_versions`
    tool-versions.yaml               AI Hub's export for ONNX Runtime GenAI: `tool_versions`
    htp_backend_ext_config.json      Genie: `devices[]` with `soc_model` and `dsp_arch`

The metadata can have megabytes, in two formats, so this module searches it and does not decode it.
"""

from __future__ import annotations

import re
from importlib.resources.abc import Traversable

from msgspec import Struct

_FILES = ("metadata.json", "metadata.yaml", "tool-versions.yaml", "htp_backend_ext_config.json")
_LONGEST = 64 * 1024 * 1024  # bytes of one file
#: `"key": value` and `key: value`; the first one counts. `*+` and `?+` are never tried again with less: a hostile file
#: has megabytes of spaces.
_ARCHITECTURE = re.compile(rb"""\b(?:htp_version|dsp_arch)"?\s*:\s*["']?v?(\d{1,4})\b""")
_SOC = re.compile(rb"""\bsoc_model"?\s*:\s*["']?(\d{1,6})\b""")
_QAIRT = re.compile(rb"""\bqairt"?\s*:\s*["']?v?(\d+\.\d+(?:\.\d+)*)""")
_CHIP = re.compile(rb"""\bchipset_attributes"?\s*+:\s*+\{?+\s*+"?name"?\s*+:\s*+["']?([\w .-]{0,80}\w)""")


class Stated(Struct, frozen=True, kw_only=True):
    """None and "": not stated.

    Args:
        chip: the publisher's name: "qualcomm-snapdragon-x-elite".
        soc: the chip number, 60 for Snapdragon X Elite.
        architecture: the Hexagon version, 73 for Snapdragon X Elite.
        qairt: the version of Qualcomm's runtime: "2.45.0.260326154327".
    """

    chip: str = ""
    soc: int | None = None
    architecture: int | None = None
    qairt: str = ""

    @property
    def target(self) -> str:
        """The chip for people: "qualcomm-snapdragon-8-elite (Hexagon v79)"."""
        version = f"Hexagon v{self.architecture}" if self.architecture else ""
        return f"{self.chip} ({version})" if self.chip and version else self.chip or version or f"chip {self.soc}"


def read_stated(root: Traversable) -> Stated:
    """What the files in `root`, a folder or an opened zip, state. A file that cannot be read states nothing."""
    texts = [text for name in _FILES if (text := _read(root.joinpath(name)))]
    soc, architecture = (_first(pattern, texts) for pattern in (_SOC, _ARCHITECTURE))
    return Stated(
        chip=_first(_CHIP, texts),
        soc=int(soc) if soc else None,
        architecture=int(architecture) if architecture else None,
        qairt=_first(_QAIRT, texts),
    )


def version_of(text: str) -> tuple[int, ...]:
    """The first three numbers of a version: (2, 45, 0) of "v2.45.0.260326154327"."""
    return tuple(int(number) for number in re.findall(r"\d{1,9}", text)[:3])


def is_newer(made_with: str, installed: str) -> bool:
    """True if both versions are known and a runtime `installed` may not read what `made_with` has written."""
    made, own = version_of(made_with), version_of(installed)
    return min(len(made), len(own)) >= 2 and made > own


def _read(file: Traversable) -> bytes:
    try:
        if not file.is_file():
            return b""
        with file.open("rb") as opened:
            return opened.read(_LONGEST)
    except OSError:
        return b""


def _first(pattern: re.Pattern[bytes], texts: list[bytes]) -> str:
    found = next((match for text in texts if (match := pattern.search(text))), None)
    return found[1].decode() if found else ""
