"""A repository as a folder: only small files are downloaded."""

from __future__ import annotations

import pytest

from gateway.bundles.json_file import read_json
from gateway.errors import BundleError
from gateway.pull.download import Remote
from gateway.pull.examine.repository import opened_repository


def test_configuration_of_gigabytes_is_not_downloaded() -> None:
    remote = Remote(url="http://127.0.0.1:9/config.json", name="config.json", size=20_000_000_000)
    with (
        opened_repository("tiny", {"config.json": remote}) as root,
        pytest.raises(BundleError, match=r"^tiny: 'config\.json' has more than 64 MiB\.$"),
    ):
        read_json(root.joinpath("config.json"), dict)
