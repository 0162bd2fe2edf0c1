"""Download a model, check it, put it into the models folder and its table into config.toml.

`spec` reads what a user wrote, `download` and `archive` get the files, `install` checks them and makes the folder,
`config_edit` changes config.toml, `pull` joins them. No native library: the command that serves imports this too.
"""
