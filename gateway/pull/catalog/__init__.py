"""What can be downloaded for a chip, and what other programs have on the disk."""
