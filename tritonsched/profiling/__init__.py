"""`tritonsched profile`: how long each model takes, measured before anybody waits for it."""
