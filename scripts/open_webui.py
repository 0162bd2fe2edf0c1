"""Open WebUI from PyPI in headless Chromium, configured by `launch`, against a gateway with the default model.

    python scripts/open_webui.py

It needs Chromium, Node 20 or newer, PyPI and the npm registry, and at the first run 7 GB of disk and some minutes.
Makes .venv-open-webui. Prints a line for each check.
"""

import os

import environment

if __name__ == "__main__":
    python = environment.ensure("test")
    os.chdir(environment.ROOT)
    environment.become([str(python), "-m", "tests.system.agents.open_webui"])
