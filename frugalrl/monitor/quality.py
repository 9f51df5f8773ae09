"""What compression and staleness cost the acting policy, on a batch of observations."""

from __future__ import annotations

from typing import Any

import numpy as np


def divergence(full: Any, compressed: Any) -> dict[str, float]:
    """`kl`: mean KL(full || compressed) in nats; `agreement`: share of observations with the same most likely action.

    Both are distributions over the actions of the same batch.
    """
    same = np.asarray(full.mode() == compressed.mode())
    same = same.reshape(same.shape[0], -1).all(-1)
    return {"kl": float(np.mean(full.kl(compressed))), "agreement": float(same.mean())}


def importance(log_ratios: np.ndarray) -> dict[str, float]:
    """`ratio`: mean of pi / mu; `ess`: effective sample size as a share of the batch, (sum w)^2 / (n sum w^2)."""
    weights = np.exp(log_ratios - log_ratios.max())
    share = weights.sum() ** 2 / (len(weights) * (weights**2).sum())
    return {"ratio": float(np.exp(log_ratios).mean()), "ess": float(share)}
