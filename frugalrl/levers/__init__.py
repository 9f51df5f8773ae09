"""Ways to save compute, each a function from a record to a record of the same kind, and off until asked for."""
