"""The precisions that a learner can have, by name. It imports no JAX, so that a command line is checked quickly."""

from __future__ import annotations

from typing import NamedTuple


class Precision(NamedTuple):
    """What the learner keeps and computes with. The repairs are those of Björck et al. 2021 (arXiv 2102.13565)."""

    dtype: str = "float32"  # of what networks compute with, and of observations in memory
    masters: bool = False  # weights and moments stay float32, networks compute with rounded copies
    hadam: bool = False  # the root of the optimiser's second moment is kept
    compound_scaling: bool = False  # of the loss, all the way through the optimiser; steps not finite are skipped
    normal_fix: bool = False  # log-probabilities divide, then square
    softplus_fix: bool = False  # and have no exponential that overflows
    kahan_momentum: bool = False  # the target network keeps what rounding leaves out
    kahan_gradients: bool = False  # so do the weights
    kahan_squares: bool = False  # and the optimiser's second moment
    stochastic: bool = False  # in place of those three: rounded at random, right on average
    supervised: bool = False  # the optimiser computes in `dtype`, too, with nothing done about it

    @property
    def skips(self) -> bool:
        """Whether an update that is not finite is left out; else it is only counted."""
        return self.compound_scaling or (self.dtype == "bfloat16" and not self.supervised)

    @property
    def counted(self) -> str:
        """What updates that were not finite are called in rows and receipts."""
        return "skipped_updates" if self.skips else "broken_updates"


COLLAPSED = 1e-3  # scale of a loss below which its gradients do not fit for another reason than the scale
REPAIRS = ("hadam", "compound_scaling", "normal_fix", "softplus_fix", "kahan_momentum", "kahan_gradients")
_REPAIRED = Precision("float16", **dict.fromkeys(REPAIRS, True))
WITHOUT = {f"fp16-without-{name.replace('_', '-')}": name for name in REPAIRS}
LACKS = {  # why an agent may not have one
    "kahan_momentum": "which has no target network",
    "normal_fix": "whose actions are not drawn from a normal distribution",
    "softplus_fix": "whose actions are not squashed by tanh",
}
PRECISIONS = {
    "fp32": Precision(),
    "bf16": Precision("bfloat16", masters=True),
    "bf16-kahan": Precision("bfloat16", kahan_momentum=True, kahan_gradients=True, kahan_squares=True),
    "bf16-stochastic": Precision("bfloat16", stochastic=True),
    "fp16": _REPAIRED,
    # for ablations: what would do in supervised learning, and all repairs but one
    "bf16-naive": Precision("bfloat16", supervised=True),
    "fp16-naive": Precision("float16", supervised=True),
    **{mode: _REPAIRED._replace(**{name: False}) for mode, name in WITHOUT.items()},
}
