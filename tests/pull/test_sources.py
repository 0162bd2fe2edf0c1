"""The servers that models come from."""

from __future__ import annotations

import pytest

from gateway.errors import ConfigError
from gateway.pull.sources import find_sources


def test_public_servers_are_the_default() -> None:
    sources = find_sources({})
    assert sources.ai_hub == "https://qaihub-public-assets.s3.us-west-2.amazonaws.com"
    assert sources.hub == "https://huggingface.co"
    assert sources.ai_dev_home == "https://www.aidevhome.com"


def test_one_server_replaces_all_of_them() -> None:
    sources = find_sources({"NPU_GATEWAY_MODEL_SERVER": "http://127.0.0.1:8/", "HF_ENDPOINT": "https://mirror"})
    assert {sources.ai_hub, sources.hub, sources.ai_dev_home} == {"http://127.0.0.1:8"}


def test_mirror_of_the_hub_is_used() -> None:
    assert find_sources({"HF_ENDPOINT": "https://mirror/"}).hub == "https://mirror"


@pytest.mark.parametrize("text", ["foo", "ftp://host", "https://", "http:/host", "host:80\n"])
@pytest.mark.parametrize("variable", ["NPU_GATEWAY_MODEL_SERVER", "HF_ENDPOINT"])
def test_variable_without_an_address_is_a_mistake(variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_sources({variable: text})
    assert caught.value.message == (
        f"{variable}: {text.strip().rstrip('/')!r} is no address. Write https://HOST, or remove the variable."
    )
