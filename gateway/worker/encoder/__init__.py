"""The worker of an encoder: batches of texts of several requests in, vectors or scores out."""
