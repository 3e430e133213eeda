"""The entry contract, the registry, and one module per built-in entry."""
