"""Triton, and what stands in for it. Read `base.py` first."""
