"""AcceRL: actors that act with a distilled, pruned and quantised copy of the policy (Zhang et al. 2022).

The paper (arXiv 2211.15023) names no task, network or algorithm; these are ours. Its claim is of acting that takes half
of the time or more: the wide networks on MuJoCo are such, the other two tasks are not, and say what is left of it
there.
"""

from __future__ import annotations

from .findings import amdahl, better, both, equal_return, methods, saves, times
from .study import Finding, Study

# settings of ours; each step is learned from once. With a gamma of 0.99 seeds of fp32 end anywhere from 60 to 3,700,
# and no loss could be seen
_CHEETAH = {
    "env": "HalfCheetah-v5", "steps": 200_000,
    "hyper": {
        "num_envs": 4, "n_steps": 16, "optimizer": "adam", "learning_rate": 1e-3, "base_width": 64, "gamma": 0.95,
        "gae_lambda": 0.95, "ent_coef": 0.0, "log_std_init": -0.5, "bounds_coef": 0.003, "sum_loss": False,
        "max_grad_norm": 0.5, "normalize_obs": True, "normalize_reward": True,
    },
}  # fmt: skip


# of 128 steps a batch: with 32 most of the learner's time would be the optimiser's, and packets'. Without the decay
# returns of single seeds jump between -110 and 900 at their end
_LONG = {"learning_rate": 6e-3, "anneal_lr": 1.0}


def _wide(width: int, **hyper) -> dict:
    return _CHEETAH | {"hyper": {**_CHEETAH["hyper"], "hidden": (width,) * 3, **hyper}}


_FEW = ("fp32", "int8", "pruned+int8", "all")
_ABLATION = (*_FEW, "cut", "half", "half+int8", "pruned", "small", "all none", "all tis")
# an environment for each actor, who calls the policy for it alone; as many steps a batch
_ALONE = _wide(2048, num_envs=2, n_steps=128, **_LONG) | {"arms": _FEW, "steps": 120_000}
_PRUNED = {"prune": 0.25}  # at a tenth of the training
_ALL = {"actors": "half+int8", **_PRUNED}
_COMPRESSED = ("int8", "half", "half+int8", "pruned", "pruned+int8", "all")
_LESS = 1 - 0.403  # of the whole training time: the paper's best
_ACTING = 1 / 2.0  # of the actors' time: the least that it claims

STUDY = Study(
    name="accerl",
    claim="Actors with a compressed policy make training at least 40.3 % shorter and lose no return (AcceRL, "
    "Zhang et al. 2022, arXiv 2211.15023: actor time 2.0 to 4.13 times less, training 29.8 to 40.3 %).",
    # actors also where there is a JAX twin: the claim is of processes that act
    # and an evaluation of HalfCheetah-v5 takes as long as a tenth of its training
    base={"agent": "impala", "runtime": "actors", "correct": "vtrace", "evaluations": 2},
    tasks={
        "HalfCheetah-v5 1024x3": _wide(1024) | {"arms": (*_FEW, "small", "fp32 batched")},
        "HalfCheetah-v5 1024x3, 120,000 steps": _wide(1024, n_steps=64, **_LONG) | {
            "arms": _ABLATION, "steps": 120_000
        },
        "HalfCheetah-v5 2048x3, 2 environments": _ALONE,
        "Walker2d-v5 2048x3, 2 environments": _ALONE | {"env": "Walker2d-v5"},
        "LunarLander-v3": {
            "env": "LunarLander-v3", "agent": "ppo", "steps": 400_000, "hyper": {"hidden": (256, 256)},
            "arms": ("fp32", "auto", "int8", "half+int8", "pruned", "all"),
        },
        # a learner of convolutions is not pruned
        "MinAtar/Breakout-v1": {"env": "MinAtar/Breakout-v1", "arms": ("fp32", "auto", "int8", "half+int8")},
    },
    arms={
        "fp32": {"actors": "fp32"},
        "all": _ALL,
        "half+int8": {"actors": "half+int8"},
        "int8": {"actors": "int8"},
        "auto": {"actors": "auto"},
        "cut": {"actors": "cut"},
        "half": {"actors": "half"},
        "pruned": {"actors": "fp32", **_PRUNED},
        "pruned+int8": {"actors": "int8", **_PRUNED},
        # what pruning leaves of 1024x3, from the start
        "small": {"actors": "fp32", "hyper": {"hidden": (256, 256, 256)}},
        # as many steps a batch, and calls of the policy for four times as many environments: fp32's own best
        "fp32 batched": {"actors": "fp32", "hyper": {"num_envs": 16, "n_steps": 4}},
        "all none": {**_ALL, "correct": "none"},
        "all tis": {**_ALL, "correct": "tis"},
    },
    findings=(
        *(
            Finding(
                "Is training at least 40.3 % shorter, at equal return?", arm, "fp32",
                both(times("training_seconds", _LESS, amdahl), equal_return()),
            )
            for arm in _COMPRESSED
        ),
        *(
            Finding("Do actors take at most half the time?", arm, "fp32", times("actor_microseconds_per_step", _ACTING))
            for arm in ("int8", "half+int8")
        ),
        Finding("Does auto cost at most 3 % of time, at equal return?", "auto", "fp32", both(
            times("training_seconds", 1.03), equal_return()
        )),
        *(
            Finding(
                "Is 40.3 % of the energy saved, at equal return?", arm, "fp32",
                both(times("energy_joules", _LESS, methods), equal_return()),
            )
            for arm in ("pruned+int8", "all")
        ),
        *(
            Finding(f"Is nothing lost with {name} in place of vtrace?", f"all {name}", "fp32", equal_return())
            for name in ("none", "tis")
        ),
        *(
            Finding(
                "Is 80 % saved of what free policies would save of fp32's best configuration?", arm, "fp32 batched",
                both(saves(0.8), equal_return()),
            )
            for arm in ("int8", "pruned+int8", "all")
        ),
        Finding("Is a pruned learner better than one as small from the start?", "pruned", "small", better()),
    ),
)  # fmt: skip
