"""`npu-gateway completion`: the Tab key completes commands, options and model names."""
