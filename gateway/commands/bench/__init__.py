"""`npu-gateway bench`: the speed and the memory of one model, measured as a client sees it."""
