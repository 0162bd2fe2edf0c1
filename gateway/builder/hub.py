"""Downloads of the Hugging Face Hub: a part of a repository into the hub client's cache, with checked hashes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gateway.bundles.disk import require_space
from gateway.child import Progress
from gateway.config.file import server_address
from gateway.config.settings import MODEL_SERVER_VARIABLE
from gateway.errors import BundleError


def list_files(repo: str, revision: str | None) -> dict[str, int]:
    """Path -> bytes of each file of a repository. Empty if the hub does not answer: a download gives the reason."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        hub = HfApi(endpoint=server_address(MODEL_SERVER_VARIABLE) or None)
        commit = hub.model_info(repo, revision=revision or "main").sha
        listed = list(hub.list_repo_tree(repo, recursive=True, revision=commit))
    except Exception:  # also those of the hub client's HTTP library
        return {}
    return {each.path: each.size for each in listed if isinstance(each, RepoFile)}


def download_snapshot(repo: str, revision: str | None, patterns: list[str], progress: Progress) -> Path:
    """Download the files of these patterns. Returns the folder, which is called as the commit. Raises BundleError."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of patterns without a file
    what = f"downloading {repo}"
    progress(what, 0.0)
    try:
        bars = _bars_to(progress, what)
        download = partial(snapshot_download, repo, revision=revision, allow_patterns=patterns, tqdm_class=bars)
        download = partial(download, endpoint=server_address(MODEL_SERVER_VARIABLE) or None)
        size, sha256s = _announced(repo, download)
        require_space({Path(constants.HF_HUB_CACHE): size}, f"The download of {repo}")
        folder = Path(download())
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(
            f"{repo} could not be downloaded ({reason}). Check its name and the network. A gated model needs `hf auth "
            "login` first."
        ) from error
    _check_downloads(repo, folder, sha256s)
    return folder


def _announced(repo: str, download: Callable[..., Any]) -> tuple[int, dict[str, str]]:
    """What a download would fetch: all bytes, and the sha256 of each file for which the hub has one, the large ones.

    Nothing if the hub does not answer: the download itself gives the reason.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        missing = {file.filename: file.commit_hash for file in download(dry_run=True) if file.will_download}
        listed = [
            each
            for commit in set(missing.values())
            for each in HfApi(endpoint=server_address(MODEL_SERVER_VARIABLE) or None).list_repo_tree(
                repo, recursive=True, revision=commit
            )
        ]
    except Exception:
        return 0, {}
    files = [each for each in listed if isinstance(each, RepoFile) and each.path in missing]
    return sum(file.size for file in files), {file.path: file.lfs.sha256 for file in files if file.lfs}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_downloads(repo: str, folder: Path, sha256s: Mapping[str, str]) -> None:
    """Raise BundleError if a file has another sha256, and remove it from the hub's cache, with links or without."""
    for name, expected in sha256s.items():
        stored = (folder / name).resolve()
        if sha256_of(stored) != expected:
            stored.unlink()
            raise BundleError(
                f"{repo}: {Path(name).name} was damaged by the download. Start again, which downloads it again."
            )


def _bars_to(progress: Progress, what: str) -> Any:
    """A progress bar class for the hub client. It reports bytes to `progress` and draws nothing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def display(self, *_: Any, **__: Any) -> None:
            if self.unit == "B" and self.total:
                progress(what, min(self.n / self.total, 1.0))

    return Bar
