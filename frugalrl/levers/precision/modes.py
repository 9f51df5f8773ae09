"""The precisions that a learner can have, by name. It imports no JAX, so that a command line is checked quickly."""

from __future__ import annotations

from typing import NamedTuple


class Precision(NamedTuple):
    """What the learner keeps and computes with. The repairs are those of Björck et al. 2021 (arXiv 2102.13565)."""

    dtype: str = "float32"  # of what networks compute with, and of observations in memory
    masters: bool = False  # weights and moments stay float32, networks compute with rounded copies
    hadam: bool = False  # the root of Adam's second moment is kept
    compound_scaling: bool = False  # of the loss, all the way through the optimiser; steps not finite are skipped
    normal_fix: bool = False  # log-probabilities divide, then square
    softplus_fix: bool = False  # and have no exponential that overflows
    kahan_momentum: bool = False  # the target network keeps what rounding leaves out
    kahan_gradients: bool = False  # so do the weights


REPAIRS = ("hadam", "compound_scaling", "normal_fix", "softplus_fix", "kahan_momentum", "kahan_gradients")
_REPAIRED = Precision("float16", **dict.fromkeys(REPAIRS, True))
PRECISIONS = {
    "fp32": Precision(),
    "bf16": Precision("bfloat16", masters=True),
    "fp16": _REPAIRED,
    # for ablations: what would do in supervised learning, and all repairs but one
    "fp16-naive": Precision("float16"),
    **{f"fp16-without-{name.replace('_', '-')}": _REPAIRED._replace(**{name: False}) for name in REPAIRS},
}
