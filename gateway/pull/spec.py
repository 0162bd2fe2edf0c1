"""What a user writes after `npu-gateway pull`: a name, hf:..., a URL, a file or a folder."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from msgspec import Struct

from gateway.config.hosts import is_loopback
from gateway.errors import ConfigError, quote
from gateway.pull.names import model_name

_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?:/([^:@]+)|:([\w.-]+))?(?:@([\w./-]+))?")


class CatalogSpec(Struct, frozen=True):
    """A name of the catalog."""

    name: str


class HubSpec(Struct, frozen=True, kw_only=True):
    """A repository of the Hugging Face Hub, or a part of it.

    Args:
        path: a file or a folder in it; "": all of it.
        quant: the number format of the wanted GGUF file: "Q4_0".
        revision: a branch, a tag or a commit.
    """

    repo: str
    path: str = ""
    quant: str = ""
    revision: str = "main"


class UrlSpec(Struct, frozen=True):
    """A zip or a GGUF file on a server."""

    url: str


class PathSpec(Struct, frozen=True):
    """A zip, a GGUF file or a folder on this machine."""

    path: Path


Spec = CatalogSpec | HubSpec | UrlSpec | PathSpec


def read_spec(text: str) -> Spec:
    """Raises ConfigError if `text` is a wrong hf: or URL, or names a file that does not exist."""
    if not text.strip():
        raise ConfigError("The name of the model is empty. `npu-gateway catalog` lists models.")
    if text.startswith("hf:"):
        return _hub(text)
    if re.match(r"[a-z+]+://", text, re.IGNORECASE):
        return _url(text)
    if path := existing(text):
        return PathSpec(path)
    if text.endswith((".zip", ".gguf")) or any(mark in text for mark in "/\\~"):
        raise ConfigError(f"There is no file or folder {quote(text)}.{_other_spelling(text)}")
    return CatalogSpec(text)


def existing(text: str) -> Path | None:
    """The absolute path of the file or folder that `text` names; None if there is none."""
    try:
        path = Path(text).expanduser().absolute()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # a name that is too long; no home folder of that user
        return None


def default_name(spec: Spec) -> str:
    """The model's name if the user gives none."""
    match spec:
        case CatalogSpec(name=name):
            return model_name(name)
        case HubSpec():
            return model_name(
                Path(spec.path).name if spec.path.endswith((".gguf", ".zip")) else spec.repo.split("/")[1]
            )
        case UrlSpec(url=url):
            return model_name(unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2])
        case PathSpec(path=path):
            return model_name(path.name)


def _other_spelling(text: str) -> str:
    if text.startswith(("huggingface.co/", "hf.co/", "www.")):
        return f" An address is {quote(f'https://{text}')}."
    is_repository = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) and not text.lower().endswith((".zip", ".gguf"))
    return f" A repository of the Hugging Face Hub is {quote(f'hf:{text}')}." if is_repository else ""


def _hub(text: str) -> HubSpec:
    found = _HUB.fullmatch(text)
    if found is None or ".." in text:
        raise ConfigError(
            f"{quote(text)} does not name a model. Write hf:ORG/REPO, hf:ORG/REPO:QUANT or hf:ORG/REPO/FILE."
        )
    repo, path, quant, revision = found.groups()
    return HubSpec(repo=repo, path=(path or "").strip("/"), quant=quant or "", revision=revision or "main")


def _url(text: str) -> Spec:
    try:
        parts = urlsplit(text)
        is_address = parts.scheme.lower() in ("https", "http") and bool(parts.hostname) and parts.port != 0
        httpx.URL(text)
    except (ValueError, httpx.InvalidURL):  # brackets, a port or characters that no address has
        is_address = False
    if not is_address:
        raise ConfigError(f"{quote(text)} is no address that can be downloaded. Write https://HOST/FILE.")
    if parts.scheme.lower() == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError(f"{quote(text)} is not protected. Write https://, or download it yourself and pull the file.")
    if parts.hostname in ("huggingface.co", "hf.co"):
        return _hub_page(parts.path, text)
    return UrlSpec(text)


def _hub_page(path: str, text: str) -> Spec:
    """The address of a repository's page, or of a file in it, as a browser shows it."""
    pieces = unquote(path).strip("/").split("/")
    if len(pieces) == 2:
        return HubSpec(repo="/".join(pieces))
    if len(pieces) > 4 and pieces[2] in ("blob", "resolve", "tree"):
        return HubSpec(repo="/".join(pieces[:2]), revision=pieces[3], path="/".join(pieces[4:]))
    return UrlSpec(text)
