"""The size of the KV caches of a bundle, known from its files, and what two token lists share in a cache."""
