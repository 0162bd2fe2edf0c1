"""Copy the package into an environment, so that `git pull` changes no code under a running gateway.

code/DIGEST/gateway/     the files of the package; DIGEST is of their contents
code/DIGEST/clone        the path of the clone, whose config.toml and models the copy uses
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path


def refresh(root: Path, venv: Path, *, may_remove: bool) -> None:
    """Let the environment import a copy of the present code.

    Args:
        may_remove: no program uses the older copies.
    """
    digest = _digest(root / "gateway")
    copy = venv / "code" / digest
    if not copy.is_dir():
        new = copy.with_name("new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(root / "gateway", new / "gateway", ignore=shutil.ignore_patterns("__pycache__"))
        (new / "clone").write_text(str(root), encoding="utf-8")
        new.rename(copy)
    for path_file in venv.glob("[Ll]ib/**/site-packages/*npu_gateway.pth"):
        # Python before 3.13 reads it in the code page of Windows: a path from here has no name of a user, all is ASCII.
        path = os.path.relpath(copy, path_file.parent).encode()
        if path_file.read_bytes() != path:
            changed = path_file.with_suffix(".new")
            changed.write_bytes(path)
            changed.replace(path_file)
    if may_remove:
        _remove_others(copy)


def _digest(package: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            state.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return state.hexdigest()[:16]


def _remove_others(copy: Path) -> None:
    for other in copy.parent.iterdir():
        if other != copy:
            with contextlib.suppress(OSError):
                shutil.rmtree(other)
