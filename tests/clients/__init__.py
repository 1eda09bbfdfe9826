"""Clients and testers that others make, pointed at Triton and at the sidecar: same results."""
