"""An OpenAI-compatible API on localhost for the NPU of a Snapdragon X laptop."""

import os

__version__ = "0.1.0"

# Told to the process itself, so also to the workers and builds that it starts.
# ONNX Runtime reports on its use to its maker and leaves an identifier in the user's folder, unless told before it is
# loaded.
os.putenv("ORT_DISABLE_TELEMETRY", "1")
# Linux then gives weights pages of 2 MiB where it would give 4 KiB: a token takes a tenth less (see docs/log.md). The C
# library reads this when a process starts, so workers only; it is nothing to other systems.
if "GLIBC_TUNABLES" not in os.environ:
    os.putenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
