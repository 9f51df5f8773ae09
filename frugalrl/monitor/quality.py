"""What compression and staleness cost the acting policy, on a batch of observations."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..distributions import EpsilonGreedy


def divergence(full: Any, compressed: Any) -> dict[str, float]:
    """`kl`: mean KL(full || compressed) in nats; `agreement`: share of observations with the same most likely action.

    `harm` is the KL too, but of action values what the full policy's values lose by the compressed one's choices, as a
    share of what they differ by: near-ties go either way without harm. Both are distributions over the actions of the
    same batch.
    """
    same = np.asarray(full.mode() == compressed.mode())
    same = same.reshape(same.shape[0], -1).all(-1)
    kl = float(np.mean(full.kl(compressed)))
    harm = regret(full.values, compressed.mode()) if isinstance(full, EpsilonGreedy) else kl
    return {"kl": kl, "agreement": float(same.mean()), "harm": harm}


def regret(values: np.ndarray, actions: np.ndarray) -> float:
    """How far `actions` [batch] stay behind the best of `values` [batch, actions], as a share of the values' range."""
    best, worst = values.max(-1), values.min(-1)
    taken = np.take_along_axis(values, actions[:, None], -1)[:, 0]
    return float((best - taken).mean() / max((best - worst).mean(), 1e-12))


def importance(log_ratios: np.ndarray) -> dict[str, float]:
    """`ratio`: mean of pi / mu; `ess`: effective sample size as a share of the batch, (sum w)^2 / (n sum w^2)."""
    weights = np.exp(log_ratios - log_ratios.max())
    share = weights.sum() ** 2 / (len(weights) * (weights**2).sum())
    return {"ratio": float(np.exp(log_ratios).mean()), "ess": float(share)}
