"""Learning algorithms: each file builds an `Agent` from a `Network`."""
