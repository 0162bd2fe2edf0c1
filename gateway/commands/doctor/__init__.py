"""`npu-gateway doctor`."""
