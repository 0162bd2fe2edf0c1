"""One model of the catalogue, and the names that it can be requested by."""

from __future__ import annotations

import re
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import asdict

from gateway.bundles.identify import Layout

#: layout -> the test that runs a tiny model of it on the NPU or its emulator
PROOFS: dict[Layout, str] = {
    "genie": "tests/system/test_published_model.py",
    "pipeline": "tests/system/test_published_layouts.py",
}


class Entry(Struct, frozen=True, kw_only=True):
    """A model for one chip in one precision. `catalog --json` prints all fields and `proven_by`; unknown is null or "".

    Args:
        name: the short name: "llama3.2-3b".
        title: the publisher's name: "Llama-v3.2-3B-Instruct".
        id: the publisher's id: "llama_v3_2_3b_instruct".
        kind: "text" can be served. "vision" and "embedding" are listed only.
        chip: the name of a chip (gateway/qnn/chips.py).
        layout: how the files are laid out (gateway/bundles/identify.py), as far as the publisher says.
        precision: "w4a16".
        parameters: billions.
        context: the longest context in tokens.
        bytes: of the download.
        licence: its short name. `licence_url` has the text.
        source: who publishes it: "AI Hub", "Hugging Face", "AI Dev Home".
        url: what `pull` downloads: an https URL or `hf:ORG/REPO/FOLDER`. "": it cannot be downloaded, see `export`.
        qairt: the version of Qualcomm's runtime that it was compiled with.
        tokens_per_s: published speed of generation.
        ttft_ms: published time to the first token after 128 tokens and after a full context.
        export: the commands that make the model if it cannot be downloaded.
        note: one sentence for the user: why it cannot be served or downloaded.
    """

    name: str
    title: str
    id: str
    chip: str
    source: str
    kind: Literal["text", "vision", "embedding"] = "text"
    layout: Layout = "genie"
    precision: str = ""
    parameters: float | None = None
    context: int | None = None
    bytes: int | None = None
    licence: str = ""
    licence_url: str = ""
    url: str = ""
    qairt: str = ""
    tokens_per_s: float | None = None
    ttft_ms: tuple[float, float] | None = None
    export: str = ""
    note: str = ""

    @property
    def proven_by(self) -> str:
        """The test that runs a tiny model of this layout; "" if there is none."""
        return PROOFS.get(self.layout, "") if self.kind == "text" else ""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "proven_by": self.proven_by}


def short_name(title: str) -> str:
    """The name for the command line: "Llama-v3.2-3B-Instruct" is "llama3.2-3b"."""
    name = re.sub(r"(v\d)_(\d)(?=_)", r"\1.\2", title.lower())  # an id: llama_v3_2_3b
    name = re.sub(r"[^a-z0-9.]+", "-", name).strip("-")
    name = re.sub(r"^([a-z-]+?)-?v(?=\d)", r"\1", name)
    name = re.sub(r"^([a-z]+)-(\d+(?:\.\d+)?)(?=-)", r"\1\2", name)  # phi-3.5-mini
    return re.sub(r"-(instruct|chat|it)(?=-|$)", "", name)


def same_key(name: str) -> str:
    """Equal for two spellings of one model: `Llama-v3.2-3B-Instruct`, `llama_v3_2_3b_instruct`, `llama3.2:3b`."""
    return re.sub(r"[^a-z0-9]", "", short_name(name.replace("_", "-")))


def parameters_of(title: str) -> float | None:
    """Billions of parameters from a name: 0.6 of "Qwen3-0.6B"."""
    found = re.search(r"(?<![\d.a-z])(\d+(?:\.\d+)?)b(?![a-z])", title.lower())
    return float(found[1]) if found else None
