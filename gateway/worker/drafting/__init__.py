"""Speculative decoding: drafts of the next tokens, which the model verifies in one device call.

The sources: the text that the client expects (`prediction.py`), the prompt and the answer so far (`lookup.py`), and a
small model (`model.py`). The first is always followed. The others draft only if `costs.py` predicts a gain. Graphs of
fixed shape cost the same for any number of ids up to their width, so drafts fill a width.
"""
