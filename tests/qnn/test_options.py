"""The check of provider options, by name and by value."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.qnn.options import DYNAMIC_MODES, check_options, known_options


def test_valid_options_are_accepted(tmp_path: Path) -> None:
    affinity = tmp_path / "affinity.json"
    affinity.write_text("{}", encoding="utf-8")
    check_options(
        {"htp_performance_mode": "balanced", "vtcm_mb": "8", "soc_model": "60", "op_affinity": str(affinity)}, "here"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"htp_perfomance_mode": "burst"}, "no option 'htp_perfomance_mode'; did you mean 'htp_performance_mode'?"),
        ({"htp_performance_mode": "brust"}, "did you mean 'burst'?"),
        ({"vtcm_mb": "lots"}, "whole number from 0 to 64"),
        ({"vtcm_mb": "-1"}, "whole number from 0 to 64"),
        ({"enable_htp_fp16_precision": "true"}, "must be one of 0, 1"),
        ({"op_affinity": "nowhere.json"}, "path of a file"),
        ({"soc_model": "0"}, "whole number from 1"),
        ({"backend_type": "htp", "backend_path": __file__}, "exclude each other"),
    ],
)
def test_invalid_option_is_named_with_nearest_spelling(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: ") as raised:
        check_options(options, "here")
    assert message in raised.value.message


def test_unknown_options_of_bundle_are_dropped() -> None:
    own = {"genie_model": "True", "vtcm_mb": "8", "htp_performance_mode": "warp", "backend_path": "QnnHtp.dll"}
    assert known_options(own) == {"vtcm_mb": "8"}


def test_dynamic_modes_exclude_default() -> None:
    assert "default" not in DYNAMIC_MODES
