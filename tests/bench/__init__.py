"""Benchmarks: run by hand, never by the gate; figures in the README come from here."""
