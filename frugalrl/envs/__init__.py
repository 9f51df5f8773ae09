"""Environments: pure JAX ones that conform to their Gymnasium originals, and adapters to everything else.

Importing this package loads nothing; each environment is a module of its own.
"""
