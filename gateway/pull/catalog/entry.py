"""One model of the catalogue, and the names that it can be requested by."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

#: genie: AI Hub's zip with genie_config.json. onnx: an ONNX Runtime GenAI folder. encoder: compiled ONNX, no text.
Layout = Literal["genie", "genie-parts", "onnx", "encoder", "unknown"]


class Entry(Struct, frozen=True, kw_only=True):
    """A model for one chip in one precision. `catalog --json` prints all fields; unknown is null or "".

    Args:
        name: the short name: "llama3.2-3b".
        title: the publisher's name: "Llama-v3.2-3B-Instruct".
        id: the publisher's id: "llama_v3_2_3b_instruct".
        kind: "text" can be served. "vision" and "embedding" are listed only.
        chip: the name of a chip (gateway/qnn/chips.py).
        layout: how the files are laid out.
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
        proven_by: the test that runs a tiny model of this layout. "": none.
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
    proven_by: str = ""
    export: str = ""
    note: str = ""

    @property
    def is_served(self) -> bool:
        return self.kind == "text"


def short_name(title: str) -> str:
    """The name for the command line: "Llama-v3.2-3B-Instruct" is "llama3.2-3b"."""
    name = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")
    name = re.sub(r"^([a-z-]+?)-?v(?=\d)", r"\1", name)
    return re.sub(r"-(instruct|chat|it)(?=-|$)", "", name)


def same_key(name: str) -> str:
    """Equal for two spellings of one model: `Llama-v3.2-3B-Instruct`, `llama_v3_2_3b_instruct`, `llama3.2:3b`."""
    return re.sub(r"[^a-z0-9]", "", short_name(name.replace("_", "-")))


def parameters_of(title: str) -> float | None:
    """Billions of parameters from a name: 0.6 of "Qwen3-0.6B"."""
    found = re.search(r"(?<![\d.a-z])(\d+(?:\.\d+)?)b(?![a-z])", title.lower())
    return float(found[1]) if found else None
