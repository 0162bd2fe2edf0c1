"""Finds models that other programs have on the disk. Nothing of theirs is changed."""
