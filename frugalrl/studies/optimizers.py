"""Optimisers and losses: Adam or RMSProp, the squared error or Huber's (Obando-Ceron and Castro 2021, section 5.4).

The tasks and settings are those of `rainbow.py`. RMSProp is centred, with Dopamine's settings for Atari: the paper does
not say others.
"""

from __future__ import annotations

from .findings import learns_better
from .rainbow import CARTPOLE, SETTINGS, task
from .study import Arguments, Finding, Study

_LOSSES = {"Huber": "huber", "MSE": "mse"}
_RMSPROP = {"optimizer": "rmsprop", "optimizer_eps": 1e-5, "learning_rate": 2.5e-4}
_RATES = {"a tenth of the rate": 0.1, "ten times the rate": 10.0}
_BETTER = learns_better()


def _own(name: str, arm: str) -> Arguments:
    rate = SETTINGS[name].dqn
    if arm.startswith("RMSProp"):
        return {"hyper": {"train_freq": rate.train_freq, **_RMSPROP}}
    times = next((by for said, by in _RATES.items() if arm.endswith(said)), 1.0)
    return {"hyper": {"train_freq": rate.train_freq, "learning_rate": times * rate.learning_rate}}


def _arms(optimizer: str, about: str = "") -> dict[str, Arguments]:
    return {
        f"{optimizer} + {loss}{about}": {"hyper": {"loss": name, "n_step": 1, "double": False}}
        for loss, name in _LOSSES.items()
    }


_PAIRS = {**_arms("Adam"), **_arms("RMSProp")}
_AT_RATES = {arm: hyper for rate in _RATES for arm, hyper in _arms("Adam", f", {rate}").items()}

STUDY = Study(
    name="optimizers",
    claim="DQN learns best with Adam and the squared error; with RMSProp Huber's loss is the better one (Obando-Ceron "
    "and Castro 2021, arXiv 2011.14826, section 5.4).",
    base={"agent": "dqn"},
    tasks={
        name: task(name, {arm: _own(name, arm) for arm in (*_PAIRS, *(_AT_RATES if name == CARTPOLE else ()))})
        for name in SETTINGS
    },
    arms={**_PAIRS, **_AT_RATES},
    figures={"Optimisers and losses": tuple(_PAIRS), "Learning rates": ("Adam + Huber", "Adam + MSE", *_AT_RATES)},
    findings=(
        Finding("4. With Adam, is the squared error better?", "Adam + MSE", "Adam + Huber", _BETTER),
        Finding("4. With Adam, is the squared error better?", "Adam + MSE", "Adam + Huber", _BETTER, together=True),
        Finding("4. With RMSProp, is Huber's loss better?", "RMSProp + Huber", "RMSProp + MSE", _BETTER, together=True),
        *(
            Finding("4. Are Adam and the squared error the best pair?", "Adam + MSE", arm, _BETTER, together=True)
            for arm in _arms("RMSProp")
        ),
        *(
            Finding(
                f"3. Does the squared error help at {rate}?", f"Adam + MSE, {rate}", f"Adam + Huber, {rate}", _BETTER
            )
            for rate in _RATES
        ),
    ),
    seeds=10,
)
