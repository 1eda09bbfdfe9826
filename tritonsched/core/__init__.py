"""The pure core: it only thinks. No I/O, no clock, no randomness, no logging; standard library
only.

Read `scheduler.py` first: it opens with the contract that both drivers (live and simulated) keep.
"""
