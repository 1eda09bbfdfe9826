"""An open-loop load generator: `tritonsched bench`. Read `load.py` first."""
