"""Finding and cutting hidden layers."""
