"""An OpenAI-compatible API on localhost for the NPU of a Snapdragon X laptop."""

import os

__version__ = "0.1.0"

# These are set for this process, so the workers and builds that it starts have them too.
# Without this variable, ONNX Runtime sends usage data to its vendor and writes an identifier to the user's folder.
os.putenv("ORT_DISABLE_TELEMETRY", "1")
# With this, Linux gives the weights pages of 2 MiB instead of 4 KiB: a token takes 10% less time (docs/log.md). The C
# library reads it when a process starts, so it works for the workers only. Other systems ignore it.
if "GLIBC_TUNABLES" not in os.environ:
    os.putenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
