"""`python -m tritonsched`."""

from tritonsched.cli import main

main()
