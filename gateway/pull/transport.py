"""One GET request, with its redirects, and what its status means for a download."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx

from gateway import __version__
from gateway.errors import BundleError

_MAX_REDIRECTS = 8
_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # statuses after which the same request can succeed
_CONNECT_S = 15.0
_ADVICE = {
    401: "It needs an account: log in (for Hugging Face with `hf auth login`) and accept the licence.",
    403: "Its licence or its host does not allow this download; get it in a browser and pull the file.",
    410: "It is no longer published.",
}


class AgainError(Exception):
    """This attempt failed, and the next one can succeed.

    Args:
        pause_s: seconds that the server wants to be left alone.
        from_start: the bytes so far are of no use.
    """

    def __init__(self, reason: str, *, pause_s: float = 0.0, from_start: bool = False) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        self.from_start = from_start


class Transport:
    """The connections of a download.

    Args:
        silence_s: a server that sends no byte for this time has failed.
    """

    def __init__(self, silence_s: float) -> None:
        agent = {"user-agent": f"npu-gateway/{__version__}", "accept-encoding": "identity"}
        self._client = httpx.Client(timeout=httpx.Timeout(silence_s, connect=_CONNECT_S), headers=agent)

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def get(
        self, url: str, headers: Mapping[str, str], secret: Mapping[str, str], what: str
    ) -> Iterator[httpx.Response]:
        """The response with status 200 or 206, whose body is not read.

        Args:
            secret: headers for the host of `url` only, not for a host that it redirects to.
            what: names the file in messages.
        Raises AgainError or httpx.TransportError if the next attempt can succeed, else BundleError.
        """
        first = url
        for _ in range(_MAX_REDIRECTS):
            own = secret if host_of(url) == host_of(first) else {}
            with self._client.stream("GET", url, headers={**own, **headers}) as response:
                if not response.has_redirect_location:
                    _check_status(response, what, url)
                    yield response
                    return
                url = _redirected(url, response.headers["location"], what)
        raise BundleError(f"{what}: {host_of(first)} redirects without an end.")


def host_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _redirected(url: str, location: str, what: str) -> str:
    """The address that a redirect leads to. An https address leads to https only."""
    try:
        target = str(httpx.URL(url).join(location))
    except httpx.InvalidURL:
        raise BundleError(f"{what}: {host_of(url)} redirects to an address that is none.") from None
    schemes = {"https"} if urlsplit(url).scheme == "https" else {"https", "http"}
    if urlsplit(target).scheme not in schemes:
        raise BundleError(f"{what}: {host_of(url)} redirects to an unprotected address, which is not followed.")
    return target


def _check_status(response: httpx.Response, what: str, url: str) -> None:
    status = response.status_code
    if status in (200, 206):
        if response.headers.get("content-encoding", "identity") != "identity":
            raise BundleError(f"{what}: {host_of(url)} sends it compressed, although this was not requested.")
        return
    if status == 416:  # the file has no byte there
        raise AgainError("the file has changed", from_start=True)
    if status in _AGAIN:
        raise AgainError(f"it answered {status}", pause_s=_retry_after_s(response))
    advice = _ADVICE.get(
        status, "Check the address; `npu-gateway catalog --refresh` reads the lists of the catalog again."
    )
    raise BundleError(f"{what} could not be downloaded: {host_of(url)} answered {status}. {advice}")


def _retry_after_s(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return min(float(text), 120.0) if text.isdecimal() else 0.0
