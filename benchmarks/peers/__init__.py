"""The systems that inference is measured beside, and ours: one adapter a file, one interface.

Each runs as `python -m benchmarks.peers.NAME` in an environment of its own, see worker.py.
"""
