"""Download a model, check it, put it into the models folder and its table into config.toml.

`spec` reads what a user wrote, `download` and `archive` get the files, `install` checks them and makes the folder,
`job` joins these, `pull` decides whether it is necessary, `config_edit` changes config.toml. No native library: the
command that serves imports this too.
"""
