"""`npu-gateway verify`: what works with a model on the running gateway.

`command.py` has the command, `peer.py` the requests, `tools.py`, `structured.py`, `answers.py`, `accounts.py`,
`sessions.py` and `vectors.py` the checks, `report.py` the text. A check raises `GatewayFault` for what the API promises
with every model, and `ModelFault` for an answer that a better model would have given.
"""
