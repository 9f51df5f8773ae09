"""Populations: many members with hyper-parameters of their own, trained together; sweeps and PBT."""
