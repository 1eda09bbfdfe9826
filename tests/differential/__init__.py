"""The sidecar against Triton: one table of requests, one place for the rules of comparison."""
