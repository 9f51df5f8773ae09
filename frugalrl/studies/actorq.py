"""ActorQ: an fp32 learner and actors with a quantised policy, which they take anew every so many steps.

Krishnan et al. 2019 (QuaRL, arXiv 1910.01055): D4PG and DQN, pull periods of 30 ("communication heavy") and 300
("computation heavy") and the 100 of their program. Its learner had an accelerator and its policies three layers of 2048
units; these have 512, so that a learner on the actors' own processor does not take all of the time. An update of 256
samples comes after 16 new steps, as theirs does: each step is learned from 16 times.
"""

from __future__ import annotations

from .findings import amdahl, both, equal_return, times
from .study import Finding, Study

_MODES, _PERIODS = ("fp32", "bf16", "int8"), (30, 100, 300)
_LESS = 1 / 1.5  # of the whole time: the least of the 1.5 to 5.41 times that it claims
_WIDE = {"hidden": (512, 512, 512), "batch_size": 256, "train_freq": 16, "gradient_steps": 1}


def _arm(mode: str, period: int) -> str:
    return f"{mode} every {period}"


STUDY = Study(
    name="actorq",
    claim="Actors with an int8 policy and an fp32 learner train 1.5 to 5.41 times faster and reach the same return "
    "(ActorQ, Krishnan et al. 2019, arXiv 1910.01055).",
    base={"runtime": "actors", "agent": "dqn"},  # actors also where there is a JAX twin: the claim is of them
    tasks={
        "d4pg dm_control/cheetah-run-v0": {
            "agent": "d4pg", "env": "dm_control/cheetah-run-v0", "steps": 200_000,
            "hyper": {**_WIDE, "n_step": 5, "v_min": 0.0, "v_max": 100.0},
        },
        "d4pg Pendulum-v1": {"agent": "d4pg", "env": "Pendulum-v1", "hyper": {**_WIDE, "train_freq": 1}},
        "dqn CartPole-v1": {"env": "CartPole-v1", "hyper": _WIDE},
        "dqn Acrobot-v1": {"env": "Acrobot-v1", "hyper": _WIDE},
    },
    arms={
        _arm(mode, period): {"actors": mode, "pull_period": period} for period in _PERIODS for mode in _MODES
    },
    findings=tuple(
        Finding(
            f"Is {mode} 1.5 times faster, at equal return?", _arm(mode, period), _arm("fp32", period),
            both(times("training_seconds", _LESS, amdahl), equal_return()),
        )
        for period in _PERIODS
        for mode in ("bf16", "int8")
    ),
)  # fmt: skip
