"""FrugalRL: deep reinforcement learning for a fraction of the compute, with proof that nothing was lost."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["cem", "dvd", "load", "pbt", "resume", "sweep", "train"]

if TYPE_CHECKING:
    from .policy import load
    from .training import cem, dvd, pbt, resume, sweep, train


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    # looked up on first use: an actor process imports this package too, and must not pay for the rest of it
    if name == "load":
        from .policy import load

        return load
    if name in ("train", "resume", "pbt", "sweep", "cem", "dvd"):
        from . import training

        return getattr(training, name)
    raise AttributeError(f"module 'frugalrl' has no attribute {name!r}")
