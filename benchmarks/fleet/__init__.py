"""A simulation of many devices behind gateways. `simulation.py` has the whole."""

import report  # noqa: F401 (so that the modules here import the gateway of this clone)
