"""The chips of Snapdragon laptops, by chip number and Hexagon version. Needs no native library.

A chip is never found by the name of a processor: one generation has many names and one NPU.
"""

from __future__ import annotations

import difflib

from msgspec import Struct

from gateway.errors import ConfigError, quote


class Chip(Struct, frozen=True):
    """A chip that bundles are compiled for.

    Args:
        name: the value of `--chip`.
        title: its name for people.
        soc_models: Qualcomm's chip numbers, as in `soc_model` of a bundle. The first one is for new bundles.
        architecture: the Hexagon version: 73 for v73.
        ai_hub_names: the names of AI Hub's assets that run on it, the best first. The first one is its own.
    """

    name: str
    title: str
    soc_models: tuple[int, ...]
    architecture: int
    ai_hub_names: tuple[str, ...]


_X_ELITE = "qualcomm-snapdragon-x-elite"

#: X Elite and X Plus have one chip number and one NPU, so X Plus runs what was made for X Elite. For X2 Elite most
#: public sources give 88. Some give 87, which QNN's header gives to a phone chip with the same Hexagon version.
CHIPS = (
    Chip("x-elite", "Snapdragon X Elite", (60,), 73, (_X_ELITE,)),
    Chip("x-plus", "Snapdragon X Plus", (60,), 73, ("qualcomm-snapdragon-x-plus-8-core", _X_ELITE)),
    Chip("x2-elite", "Snapdragon X2 Elite", (88, 87), 81, ("qualcomm-snapdragon-x2-elite",)),
)
CHIP_NAMES = tuple(chip.name for chip in CHIPS)
#: chip number -> Hexagon version
HTP_ARCHITECTURES = {soc: chip.architecture for chip in CHIPS for soc in chip.soc_models}


def chip_named(name: str) -> Chip:
    """The chip with this name. Raises ConfigError, which has the names."""
    for chip in CHIPS:
        if chip.name == name:
            return chip
    close = difflib.get_close_matches(name, CHIP_NAMES, 1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise ConfigError(f"There is no chip {quote(name)}. The chips are {', '.join(CHIP_NAMES)}{hint or '.'}")


def chip_of(soc: int | None, architecture: int | None) -> Chip | None:
    """The chip with this number and Hexagon version, of which one may be unknown. None: no chip of a laptop.

    X Elite is the answer for X Plus too: they have one number.
    """
    if soc is None and architecture is None:
        return None
    for chip in CHIPS:
        if soc in (None, *chip.soc_models) and architecture in (None, chip.architecture):
            return chip
    return None
