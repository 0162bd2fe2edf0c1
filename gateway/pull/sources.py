"""The public servers that models come from, and one server in place of all of them."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from gateway.config.file import server_address
from gateway.config.settings import MODEL_SERVER_VARIABLE

_AI_HUB = "https://qaihub-public-assets.s3.us-west-2.amazonaws.com"
_AI_DEV_HOME = "https://www.aidevhome.com"
_HUB = "https://huggingface.co"


class Sources(Struct, frozen=True):
    """The base URLs, without a slash at the end.

    Args:
        ai_hub: the bucket of Qualcomm AI Hub's public files: `{ai_hub}/qai-hub-models/releases/latest/manifest.json`.
        hub: the Hugging Face Hub: `{hub}/api/models`, `{hub}/ORG/REPO/resolve/main/FILE`.
        ai_dev_home: `{ai_dev_home}/data/adh2/models/suggested/FILE.zip`.
    """

    ai_hub: str
    hub: str
    ai_dev_home: str


def find_sources(environ: Mapping[str, str] | None = None) -> Sources:
    """The servers. `NPU_GATEWAY_MODEL_SERVER` replaces each host and keeps the paths; `HF_ENDPOINT` replaces the Hub.

    Args:
        environ: the environment; None: that of the process.
    Raises ConfigError if a variable holds no address.
    """
    if one := server_address(MODEL_SERVER_VARIABLE, environ):
        return Sources(one, one, one)
    return Sources(_AI_HUB, server_address("HF_ENDPOINT", environ) or _HUB, _AI_DEV_HOME)
