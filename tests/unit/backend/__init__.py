"""Tests of the way to Triton, without one."""
