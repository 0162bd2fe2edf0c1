"""Host names and web origins in one spelling, so that two spellings of the same name are equal."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

_LONGEST_NAME = 255  # characters; the codec takes 0.1 s for 60,000
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_PORTS = {"http": ":80", "https": ":443"}  # browsers leave these out of an origin


def is_loopback(host: str) -> bool:
    """True if only this machine can connect to `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_name(text: str) -> str:
    """A host name as browsers send it: lower case, IDNA, no final dot, IPv6 in brackets and in its shortest form.

    Raises ValueError, with a message, for a text that is not a host name without a port.
    """
    if len(text) > _LONGEST_NAME:
        raise ValueError(f"it has more than {_LONGEST_NAME} characters")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return _domain(text)
    if "%" in bare:
        raise ValueError("browsers send an address without its zone")
    return f"[{address}]" if address.version == 6 else bare


def _domain(text: str) -> str:
    if re.search(r":\d*$", text):
        raise ValueError("write it without the port; every port is allowed")
    if "*" in text:
        raise ValueError("write each name in full; only '*' alone allows every name")
    if set(text) & set("ßς\u200c\u200d"):  # Python's codec has the rules of 2003, which differ for these
        raise ValueError("write it as browsers send it, with 'xn--'")
    try:
        name = text.lower().removesuffix(".").encode("idna").decode()
    except UnicodeError:
        raise ValueError("it is not a host name") from None
    if not _NAME.fullmatch(name):
        raise ValueError("it is not a host name")
    return name


def web_origin(text: str) -> str:
    """An origin as browsers send it: lower case, no path, no default port. `*` stays, alone or for a part of the host.

    Raises ValueError, with a message, for a text that is not an origin.
    """
    if text in ("*", "null"):
        return text
    scheme, separator, host = text.lower().removesuffix("/").partition("://")
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise ValueError("an origin is a scheme and a host, such as 'https://chat.example'")
    if re.search(r"[/?#@\\]", host):
        raise ValueError("an origin has no path, query or user name")
    name, port = re.fullmatch(r"(.*?)(:\d+|:\*)?", host, re.DOTALL).groups("")  # type: ignore[union-attr]
    if "*" not in name:
        name = host_name(name)
    elif not re.fullmatch(r"[a-z0-9_.*-]+", name):
        raise ValueError("it is not a host name")
    return f"{scheme}://{name}{'' if port == _PORTS.get(scheme) else port}"


def server_url(text: str) -> SplitResult:
    """The URL of an upstream server. Raises ValueError, with a message, for a text that is not one."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("in printable ASCII without spaces")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("with a host and a port up to 65535") from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or url.path.startswith("//"):
        raise ValueError("such as 'http://127.0.0.1:8081/v1'")
    if url.username is not None or url.fragment:
        raise ValueError("without a user name or a '#'; a key belongs in api_key")
    return url
