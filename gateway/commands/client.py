"""The OpenAI client for a gateway on this machine, as `chat` and `bench` use it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gateway.config.hosts import is_loopback
from gateway.errors import GatewayError, UpstreamFailed

if TYPE_CHECKING:
    from openai import APIError, OpenAI


def openai_client(url: str, key: str, *, timeout_s: float = 600.0, retries: int = 2) -> OpenAI:
    """A client of the API at `url`. `key`: "" if the gateway has no keys."""
    from openai import DefaultHttpxClient, OpenAI

    trust_env = not is_loopback(urlsplit(url).hostname or "")  # no proxy to this machine
    http = DefaultHttpxClient(trust_env=trust_env, follow_redirects=False)  # which would get the prompt
    return OpenAI(base_url=url, api_key=key or "none", timeout=timeout_s, max_retries=retries, http_client=http)


def listed_models(url: str, key: str) -> list[dict[str, Any]]:
    """The entries of /v1/models, with the fields that are not OpenAI's. Raises UpstreamFailed."""
    from openai import APIError

    with openai_client(url, key, timeout_s=30.0) as client:
        try:
            return models_of(client)
        except APIError as error:
            raise gateway_error(error) from None


def models_of(client: OpenAI) -> list[dict[str, Any]]:
    """The same. Raises the library's error, and UpstreamFailed for a server of another kind, such as a web page."""
    try:
        models = [model.model_dump() for model in client.models.list().data]
    except (
        AttributeError,
        RecursionError,
        TypeError,
        ValueError,
    ):  # the library gives back what it does not know as it is
        models = [{}]
    if not all(isinstance(model.get("id"), str) and model["id"].isprintable() for model in models):
        raise UpstreamFailed(
            f"the server at {client.base_url} does not list models as OpenAI's API does; check the URL"
        )
    return models


def gateway_error(error: APIError) -> GatewayError:
    """The error of the client library as one line for the user."""
    from openai import APIConnectionError

    from gateway.commands.running.find import others
    from gateway.commands.running.run_file import running_gateways

    if isinstance(error, APIConnectionError):
        url = error.request.url
        address = f"{url.scheme}://{url.netloc.decode()}"
        gateways = [run for run in running_gateways() if run.url != address]
        return UpstreamFailed(f"no server answers at {address}{others(gateways)}")
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message") or error.message)
    return UpstreamFailed(f"{message}{_next_step(error, message)}")


def _next_step(error: APIError, message: str) -> str:
    """The end of the message: how to give a key, or when to try again; "" if the message has the seconds."""
    from openai import APIStatusError, AuthenticationError

    if isinstance(error, AuthenticationError):
        return f"{'' if message.endswith('.') else '.'} Give the key with --api-key."
    seconds = error.response.headers.get("retry-after", "") if isinstance(error, APIStatusError) else ""
    if not seconds.isdigit() or re.search(r"\d s\b", message):
        return ""
    return f"{'' if message.endswith('.') else '.'} Try again in {max(1, int(seconds))} s."
