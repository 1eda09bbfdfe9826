"""A deadline-aware scheduling sidecar for NVIDIA Triton Inference Server."""
