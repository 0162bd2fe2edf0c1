"""Download a model, check it, put it into the models folder and its table into config.toml."""
