"""`npu-gateway launch CLIENT`: starts a coding agent, an editor or a chat program with the running gateway.

`command.py` has the command, `clients/` the settings of each client, and `files.py` writes them.
"""
