"""A repository of the Hugging Face Hub: its files with sizes and hashes, and which of them are one model."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import quote as url_quote

import psutil
from msgspec import Struct

from gateway.builder.gguf_choice import GgufModel, choose_gguf, gguf_models
from gateway.errors import BundleError
from gateway.pull.download import Remote
from gateway.pull.names import fault_of, key_of
from gateway.pull.spec import HubSpec

_CONFIGURATIONS = ("genai_config.json", "genie_config.json")
_MAX_FILES = 2000


class HubFile(Struct, frozen=True, kw_only=True):
    path: str
    size: int
    sha256: str  # "": a small file, whose content is in git


class Repo(Struct, frozen=True, kw_only=True):
    """A repository at one commit."""

    name: str
    commit: str
    licence: str
    files: list[HubFile]


def read_repo(hub: str, spec: HubSpec) -> Repo:
    """Ask the Hub. Raises BundleError that names the next step."""
    from huggingface_hub import HfApi, RepoFile
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    api = HfApi(endpoint=hub)
    try:
        info = api.model_info(spec.repo, revision=spec.revision)
        commit = info.sha or spec.revision
        listed = api.list_repo_tree(spec.repo, recursive=True, revision=commit)
        files = [
            HubFile(path=file.path, size=file.size, sha256=file.lfs.sha256 if file.lfs else "")
            for file in listed
            if isinstance(file, RepoFile)
        ]
    except GatedRepoError:
        raise BundleError(
            f"{spec.repo} needs your consent: accept its licence on its page, then run `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise BundleError(
            f"There is no {spec.repo} on the Hub, or it is private: correct it, or run `hf auth login`."
        ) from None
    except Exception as error:  # also those of the hub client's HTTP library, which it does not convert
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{spec.repo} could not be read ({reason}). Check its name and the network.") from error
    card = info.card_data
    return Repo(name=spec.repo, commit=commit, licence=str((card and card.get("license")) or ""), files=files)


def remotes(hub: str, repo: Repo, files: list[HubFile], root: str) -> dict[str, Remote]:
    """Path below `root` -> what to download. Raises BundleError for a name that a file system cannot have."""
    from huggingface_hub import get_token

    token = get_token()
    found: dict[str, Remote] = {}
    for file in files:
        relative = file.path.removeprefix(f"{root}/" if root else "")
        if fault := next(filter(None, map(fault_of, relative.split("/"))), ""):
            raise BundleError(f"{repo.name}: a file cannot be stored, because its name {fault}. Nothing was installed.")
        found[relative] = Remote(
            url=f"{hub}/{repo.name}/resolve/{repo.commit}/{url_quote(file.path)}",
            name=PurePosixPath(file.path).name,
            size=file.size,
            sha256=file.sha256,
            headers={"authorization": f"Bearer {token}"} if token else {},
        )
    if len({key_of(path) for path in found}) < len(found):
        raise BundleError(f"{repo.name}: two files have one name where case is ignored. Nothing was installed.")
    return found


def one_remote(hub: str, repo: Repo, path: str) -> Remote:
    """One file. Raises BundleError if the repository does not have it."""
    files = [file for file in repo.files if file.path == path]
    if not files:
        raise BundleError(f"{repo.name} has no {path}.")
    [remote] = remotes(hub, repo, files, str(PurePosixPath(path).parent).removeprefix(".")).values()
    return remote


def bundle_root(repo: Repo, spec: HubSpec) -> str | None:
    """The folder of the only bundle in the repository, or in the wanted folder of it. None: there is no bundle.

    Raises BundleError if there are several, or if the wanted folder is not there.
    """
    within = f"{spec.path}/" if spec.path else ""
    inside = [file.path for file in repo.files if file.path.startswith(within)]
    if not inside:
        raise BundleError(f"{repo.name} has no {spec.path}.")
    roots = sorted({_parent(path) for path in inside if PurePosixPath(path).name in _CONFIGURATIONS})
    if len(roots) > 1:
        shown = ", ".join(f"hf:{repo.name}/{root}" if root else f"hf:{repo.name}" for root in roots[:6])
        raise BundleError(f"{repo.name} has {len(roots)} bundles. Choose one: {shown}.")
    return roots[0] if roots else None


def files_in(repo: Repo, root: str) -> list[HubFile]:
    """The files of a bundle, without hidden ones."""
    found = [file for file in repo.files if file.path.startswith(f"{root}/" if root else "")]
    found = [file for file in found if not any(part.startswith(".") for part in file.path.split("/"))]
    if len(found) > _MAX_FILES:
        raise BundleError(f"{repo.name} has {len(found)} files, more than a bundle has. Choose a folder in it.")
    return found


def gguf_model(repo: Repo, spec: HubSpec) -> GgufModel | None:
    """The GGUF model that `spec` names, or the best one that fits. None: the repository has no GGUF files.

    Raises BundleError with the names and sizes of its models if there is none, or more than one.
    """
    within = "" if spec.path.lower().endswith(".gguf") or not spec.path else f"{spec.path}/"
    sizes = {file.path: file.size for file in repo.files if file.path.startswith(within)}
    wanted = spec.quant or ("" if within else spec.path)
    if not wanted and not any(path.lower().endswith(".gguf") for path in sizes):
        return None
    return choose_gguf(repo.name, gguf_models(sizes), wanted, psutil.virtual_memory().total)


def has_weights(repo: Repo, spec: HubSpec) -> bool:
    """True if the builder can make a bundle of the repository, or of the wanted folder."""
    within = f"{spec.path}/" if spec.path else ""
    return any(file.path.startswith(within) and file.path.endswith(".safetensors") for file in repo.files)


def _parent(path: str) -> str:
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "." else parent
