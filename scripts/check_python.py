"""Exit with one line if this Python is too old. Every Python, also 2.7, can read this file."""

import sys
import sysconfig

# On Windows ARM, not every package has a wheel for Python 3.11.
if sys.version_info < ((3, 12) if sysconfig.get_platform() == "win-arm64" else (3, 11)):
    found = "%d.%d" % sys.version_info[:2]
    needed = "Python 3.11 or newer, on Windows ARM 3.12 or newer"
    sys.exit("npu-gateway needs %s; %s is Python %s." % (needed, sys.executable, found))
