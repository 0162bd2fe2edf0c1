"""One file for each family of encoders: what its config.json means, and the names of its tensors."""
