"""`npu-gateway chat`: questions to a gateway that is running."""
