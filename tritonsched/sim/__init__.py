"""The simulated driver: virtual time, simulated Triton, the very scheduler that runs live.

Rule: it holds no copy of a scheduling rule and never waits. Read `engine.py` first.
"""
