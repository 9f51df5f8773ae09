"""QuaRL: how few bits the weights of a policy need, rounded after training or trained for them.

Krishnan et al. 2019 (arXiv 1910.01055), whose tasks are mostly Atari, of 10 million steps each; these are small, and so
are the networks (64x64). Weights are rounded by the rule of its authors' code, in training by the same one: what they
describe there, activations included, is not in their code.
"""

from __future__ import annotations

from .findings import better, equal_return, keeps
from .study import Finding, Study

_TRAINED, _ROUNDED = (2, 3, 4, 6, 8), (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32)
_LOSS = 0.05  # of the return: what counts as nothing is ours to say


def _arm(bits: int) -> str:
    return f"{bits} bits"


STUDY = Study(
    name="quarl",
    claim="Policies need 6 to 8 bits a weight without losing return, and fewer if they are trained for them (QuaRL, "
    "Krishnan et al. 2019, arXiv 1910.01055).",
    base={"agent": "dqn"},  # on other environments than these
    tasks={
        "dqn CartPole-v1": {"agent": "dqn", "env": "CartPole-v1"},
        "ppo CartPole-v1": {"agent": "ppo", "env": "CartPole-v1"},
        "a2c CartPole-v1": {"agent": "a2c", "env": "CartPole-v1"},
        "dqn Acrobot-v1": {"agent": "dqn", "env": "Acrobot-v1"},
        # with four passes over its data it does not learn this in all seeds
        "ppo Acrobot-v1": {"agent": "ppo", "env": "Acrobot-v1", "hyper": {"n_epochs": 10}},
    },
    arms={"full": {}, **{_arm(bits): {"qat": bits} for bits in _TRAINED}},
    findings=(
        *(
            Finding(f"Does rounding to {bits} bits after training lose nothing?", "full", "full", keeps(bits, _LOSS))
            for bits in (8, 6)
        ),
        *(
            Finding(
                f"Is training for {bits} bits better than rounding to them afterwards?", _arm(bits), "full",
                better(bits=bits), together=True,
            )
            for bits in _TRAINED
        ),
        *(
            Finding(f"Does training for {bits} bits lose nothing?", _arm(bits), "full", equal_return())
            for bits in (4, 8)
        ),
    ),
    bits=_ROUNDED,
)  # fmt: skip
