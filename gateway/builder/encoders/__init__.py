"""Makes bundles of encoders: models whose answer is a vector for a text, or a score for a pair of texts."""
