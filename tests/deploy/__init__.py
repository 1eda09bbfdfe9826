"""What stands in deploy/ and the compose files, held to its schemas and to what it is for."""
