"""Models: which are on disk, which are in memory, and how one becomes the other.

`store.py` is what the rest of the server uses.
"""
