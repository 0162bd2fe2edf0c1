"""The size of the KV caches of a bundle, known from its files."""
