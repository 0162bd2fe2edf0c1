"""The OpenAI client for a gateway on this machine, as `chat` and `bench` use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError, UpstreamFailed

if TYPE_CHECKING:
    from openai import APIError, OpenAI


def openai_client(url: str, key: str, *, timeout_s: float = 600.0, retries: int = 2) -> OpenAI:
    """A client of the API at `url`. `key`: "" if the gateway has no keys."""
    from openai import OpenAI

    return OpenAI(base_url=url, api_key=key or "none", timeout=timeout_s, max_retries=retries)


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
    except (AttributeError, TypeError, ValueError):  # the library gives back what it does not know as it is
        models = [{}]
    if not all(isinstance(model.get("id"), str) for model in models):
        raise UpstreamFailed(
            f"the server at {client.base_url} does not list models as OpenAI's API does; check the URL"
        )
    return models


def gateway_error(error: APIError) -> GatewayError:
    """The error of the client library as one line for the user."""
    from openai import APIConnectionError

    if isinstance(error, APIConnectionError):
        url = error.request.url
        address = f"{url.scheme}://{url.netloc.decode()}"
        return UpstreamFailed(f"no server answers at {address}; start the gateway with `npu-gateway serve`")
    body = error.body if isinstance(error.body, dict) else {}
    return UpstreamFailed(str(body.get("message") or error.message))
