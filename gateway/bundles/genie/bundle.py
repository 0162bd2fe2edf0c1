"""Reads a Genie bundle: its configuration, the files that it names, and the chat template for its model.

Snapdragon laptops come with models in this layout, and AI Hub publishes it. Genie gets the bundle's own configuration
with these changes:

1. Absolute paths (files.py). `extensions` is left out if its file is missing: bundles of AI Dev Home rely on a file of
   another program. It names the chip, which the library detects, and the performance, which the worker sets.
2. `sampler` is replaced, because a dialog that is created greedy stays greedy even if another sampler is applied later.
3. `poll` is off unless the user wants it: it keeps CPU cores busy, also without a request, and slows answers down.
4. `bos-token` of a model without a begin token is -1: the library refuses the other ways to say it.
5. An `eot-token` that is an ordinary token of the tokenizer is dropped: exporters copy it from other models, and it
   would cut answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gateway.bundles.bundle import find_chat_templates
from gateway.bundles.genie.config import Dialog, find_config, read_config
from gateway.bundles.genie.files import check_binary, find, located
from gateway.bundles.genie.metadata import read_metadata
from gateway.bundles.genie.templates import fallback_template
from gateway.bundles.json_file import LONGEST, read_json, read_optional_object, readable
from gateway.sampling import valid

_FORECAST = "kv-cache.primary.qnn-htp"
#: Tokens. The widest pass of the published models, assumed if the bundle does not state its own width.
_USUAL_WIDTH = 128
_SAMPLER = {"version": 1, "seed": 0, "temp": 1.0, "top-k": 40, "top-p": 1.0}
_NO_TOKEN = -1


class GenieBundle(Struct, frozen=True, kw_only=True):
    """What a bundle says about its model, before the library is loaded."""

    folder: Path
    config: dict[str, Any]  # the configuration for Genie
    dialog_type: str
    context_length: int  # tokens, of the compiled graphs
    contexts: tuple[int, ...]  # the context lengths that graphs exist for, in ascending order; empty: unknown
    prompt_width: int  # the maximum number of prompt tokens in one pass
    vocab_size: int
    bos_id: int | None  # None: the model has no begin token
    end_ids: tuple[int, ...]
    end_strings: tuple[str, ...]  # texts that end an answer
    max_tokens: int | None  # of one answer; None: no limit
    sampling: dict[str, float]  # recommended `temperature`, `top_k`, `top_p`; without those that the bundle lacks
    binaries: tuple[Path, ...]
    tokenizer_path: Path
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    tool_template: str | None = None

    @property
    def usable_context(self) -> int:
        """The maximum number of tokens of prompt and answer together: the context without two passes.

        After a longer conversation, the library counts wrongly in the next one and later crashes (docs/genie.md).
        """
        return self.context_length - 2 * self.prompt_width


def load_genie_bundle(path: Path, dialect: str = "", *, poll: bool = False) -> GenieBundle:
    """Read a bundle and check every file that its configuration names. Raises BundleError for each fault.

    Args:
        path: the configuration, or a folder with it (`find_config`).
        dialect: selects the chat template if the bundle has none; "": the special tokens select it.
        poll: Genie waits for the NPU in a busy loop.
    """
    with readable(path):
        return _load(find_config(path.absolute()), dialect, poll)


def _load(path: Path, dialect: str, poll: bool) -> GenieBundle:
    folder = path.parent
    metadata = read_metadata(folder)
    raw, dialog = read_config(path)
    tokenizer_path = located(folder, dialog.tokenizer.path, "tokenizer")
    tokenizer = read_json(tokenizer_path, _TokenizerFile, longest=LONGEST)
    end_ids = _end_ids(dialog, tokenizer)
    tokenizer_config = _special_tokens(dialog, tokenizer) | read_optional_object(
        tokenizer_path.with_name("tokenizer_config.json")
    )
    templates = find_chat_templates(tokenizer_path.parent, tokenizer_config)
    template = templates.default or fallback_template(
        folder, dialect, tokenizer.names.values(), tokenizer.begin_token(dialog)
    )
    binaries = tuple(located(folder, name, "context binary") for name in dialog.engine.model.binary.ctx_bins)
    for binary in binaries:
        check_binary(binary)
    _set_paths(raw["dialog"], dialog, folder, tokenizer_path, binaries)
    _set_behaviour(raw["dialog"], dialog, end_ids, poll)
    return GenieBundle(
        folder=folder,
        config=raw,
        dialog_type=dialog.type,
        context_length=dialog.context.size,
        contexts=metadata.contexts,
        prompt_width=metadata.prompt_width or min(_USUAL_WIDTH, dialog.context.size // 4),
        vocab_size=dialog.context.n_vocab,
        bos_id=dialog.context.bos_id,
        end_ids=end_ids,
        end_strings=tuple(text for text in dialog.stops if text and text not in tokenizer.names.values()),
        max_tokens=dialog.max_tokens if dialog.max_tokens > 0 else None,
        sampling=_recommended(dialog.sampler),
        binaries=binaries,
        tokenizer_path=tokenizer_path,
        tokenizer_config=tokenizer_config,
        chat_template=template,
        tool_template=templates.tool_use,
    )


class _AddedToken(Struct):
    id: int
    content: str


class _TokenizerFile(Struct):
    added_tokens: list[_AddedToken] = []
    post_processor: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def names(self) -> dict[int, str]:
        """The text of each added token, by its id."""
        return {token.id: token.content for token in self.added_tokens}

    def begin_token(self, dialog: Dialog) -> str:
        """The begin token of the configuration if the tokenizer adds it to a text, else ""."""
        name = self.names.get(-1 if dialog.context.bos_id is None else dialog.context.bos_id, "")
        return name if name and msgspec.json.encode(name) in bytes(self.post_processor) else ""


def _end_ids(dialog: Dialog, tokenizer: _TokenizerFile) -> tuple[int, ...]:
    """The ids of `eos-token`, and of `eot-token` and `stop-sequence` if they are added tokens."""
    eot, stops = dialog.context.eot_token, set(dialog.stops)
    added = [index for index, name in tokenizer.names.items() if index == eot or name in stops]
    return tuple(dict.fromkeys([*dialog.context.eos_ids, *added]))


def _special_tokens(dialog: Dialog, tokenizer: _TokenizerFile) -> dict[str, Any]:
    """`bos_token` and `eos_token` for the template of a bundle without a tokenizer_config.json."""
    ids = {"bos_token": dialog.context.bos_id, "eos_token": dialog.context.eos_ids[0]}
    return {role: tokenizer.names[index] for role, index in ids.items() if index in tokenizer.names}


def _recommended(sampler: dict[str, Any]) -> dict[str, float]:
    """The values of the table `sampler` that are in our ranges.

    Its `seed` is not one of them: with the same seed for each request, every answer to a prompt is the same.
    """
    names = {"temp": "temperature", "top-k": "top_k", "top-p": "top_p"}
    return valid({name: sampler[key] for key, name in names.items() if key in sampler})


def _set_paths(raw: dict[str, Any], dialog: Dialog, folder: Path, tokenizer: Path, binaries: tuple[Path, ...]) -> None:
    """Replace the paths in the table `dialog`, which is `raw`, by absolute ones."""
    raw["tokenizer"]["path"] = str(tokenizer)
    raw["engine"]["model"]["binary"]["ctx-bins"] = [str(binary) for binary in binaries]
    if (name := raw["engine"]["backend"].pop("extensions", None)) and (extensions := find(folder, name)):
        raw["engine"]["backend"]["extensions"] = str(extensions)
    if dialog.ssd is not None:
        forecast = located(
            folder, dialog.ssd.forecast_prefix_name, "forecast prefix", lambda path: (path / _FORECAST).is_file()
        )
        raw["ssd-q1"]["forecast-prefix-name"] = str(forecast)


def _set_behaviour(raw: dict[str, Any], dialog: Dialog, end_ids: tuple[int, ...], poll: bool) -> None:
    """Change what else Genie gets otherwise than the bundle says: see the top of this module."""
    raw["sampler"] = _SAMPLER
    if dialog.engine.backend.htp is not None:
        raw["engine"]["backend"]["QnnHtp"]["poll"] = poll
    context = raw["context"]
    context["bos-token"] = _NO_TOKEN if dialog.context.bos_id is None else dialog.context.bos_id
    if dialog.context.eot_token not in end_ids:
        context.pop("eot-token", None)
