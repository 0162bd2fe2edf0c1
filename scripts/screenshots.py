"""Make the pictures of the page in docs/images/ with headless Chromium and scripted models.

    python scripts/screenshots.py

It needs Chromium, Node 20 or newer and the npm registry. For Chinese it needs a font, for example Debian's package
fonts-wqy-microhei.
"""

import os

import environment

if __name__ == "__main__":
    python = environment.ensure("test")
    os.chdir(environment.ROOT)
    environment.become([str(python), "-m", "tests.system.page.screenshots"])
