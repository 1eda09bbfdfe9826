"""Unit tests: no network, no Triton, no waiting."""
