"""An OpenAI-compatible API on localhost for the NPU of a Snapdragon X laptop."""

import os

__version__ = "0.1.0"

# ONNX Runtime reports on its use to its maker and leaves an identifier in the user's folder, unless told before it is
# loaded. Told to the process itself, so also to the workers and builds that it starts.
os.putenv("ORT_DISABLE_TELEMETRY", "1")
