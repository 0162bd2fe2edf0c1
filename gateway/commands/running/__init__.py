"""Commands for gateways that run: where they are, what they do, how they stop."""
