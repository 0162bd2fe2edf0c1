"""An OpenAI-compatible API on localhost for the NPU of a Snapdragon X laptop."""

__version__ = "0.1.0"
