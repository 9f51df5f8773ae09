"""Low-Precision SAC: whether a learner of 16 bits loses return, and which repair it owes that to.

Björck et al. 2021 (arXiv 2102.13565) have SAC on six tasks of the DeepMind Control Suite, 1024x1024, batches of 1,024
and 510,000 steps a run; here networks, batches and runs are of the size of a small machine, and other agents and tasks
beside. Their six tasks are all those of the names below that begin with dm_control.
"""

from __future__ import annotations

from ..catalog import PLANET
from ..levers.precision.modes import WITHOUT
from .findings import breaks, equal_return
from .study import Arguments, Finding, Study

_ARMS = ("fp32", "bf16", "fp16", "fp16-naive", "bf16-kahan")
_PENDULUM = (*_ARMS, "bf16-stochastic", *WITHOUT)
# their learner in small; theirs begins to learn after 5,000 of 510,000 steps
_CONTROL = {"hidden": (128, 128), "batch_size": 128, "learning_rate": 1e-3, "learning_starts": 1_000}
_PIXELS = {"ppo": 200_000, "dqn": 100_000}  # steps of MinAtar, too few to play well


def _planet(name: str) -> Arguments:
    about = {"agent": "sac", "env": f"dm_control/{name}-v0", "steps": 30_000}
    # an evaluation is 20 episodes of 1,000 steps: ten of them would cost more than the training
    return {**about, "runtime": "actors", "evaluations": 3, "hyper": _CONTROL, "arms": _ARMS}


STUDY = Study(
    name="precision",
    claim="With six repairs SAC learns as well in float16 as in float32, and without them it does not (Low-Precision "
    "Reinforcement Learning, Björck et al. 2021, arXiv 2102.13565).",
    base={"agent": "sac"},
    tasks={
        "sac Pendulum-v1": {"env": "Pendulum-v1", "arms": _PENDULUM},
        **{f"{agent} CartPole-v1": {"agent": agent, "env": "CartPole-v1", "arms": _ARMS} for agent in ("dqn", "ppo")},
        **{
            f"{agent} MinAtar": {"agent": agent, "env": "MinAtar/Breakout-v1", "steps": steps, "arms": _ARMS}
            for agent, steps in _PIXELS.items()
        },
        **{f"sac {name}": _planet(name) for name in PLANET},
    },
    arms={arm: {"precision": arm} for arm in _PENDULUM},
    findings=(
        *(
            Finding(f"Does a learner in {arm} lose nothing?", arm, "fp32", equal_return())
            for arm in ("bf16", "fp16", "bf16-kahan", "bf16-stochastic")
        ),
        Finding("Does float16 fail without the repairs?", "fp16-naive", "fp32", breaks()),
        *(
            Finding(f"Is {name.replace('_', '-')} needed?", arm, "fp16", breaks(), tasks=("sac Pendulum-v1",))
            for arm, name in WITHOUT.items()
        ),
    ),
    figures={"Precisions": _ARMS, "Six repairs minus one": ("fp16", *WITHOUT, "fp16-naive")},
)
