"""Compressed actors: a smaller or coarser copy of the policy acts, the learner keeps the full one."""
