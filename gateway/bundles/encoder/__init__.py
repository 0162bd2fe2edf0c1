"""The layout of an encoder's bundle."""
