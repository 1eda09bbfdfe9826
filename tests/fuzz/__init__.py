"""Requests that nobody would write, to Triton and through the sidecar."""
