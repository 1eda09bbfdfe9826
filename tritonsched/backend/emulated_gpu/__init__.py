"""The emulated GPU: a Triton backend that sleeps instead of computing. `emulated_gpu.c` first.

Rule: the C source travels with the package and is compiled where it runs (`build.py`); `model.py`
is the same behaviour for Triton's python backend, for machines without a C compiler.
"""
