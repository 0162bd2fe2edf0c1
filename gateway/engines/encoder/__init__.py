"""Embeddings and scores from a bundle on this machine."""
