"""Tests of the two front ends."""
