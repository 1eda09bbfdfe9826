"""What needs an NVIDIA GPU: `make gpu-check`. See `__main__`."""
