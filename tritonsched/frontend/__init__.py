"""Bytes in, bytes out: Triton's two protocols. Read `service.py`, then one server and its codec."""
