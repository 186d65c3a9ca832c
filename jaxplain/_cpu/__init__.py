"""Faster equations for XLA's CPU backend."""
