"""Optimisers and losses: Adam or RMSProp, the squared error or Huber's (Obando-Ceron and Castro 2021, section 5.4).

The tasks and settings are those of `rainbow.py`. RMSProp is centred, with Dopamine's settings for Atari: the paper does
not say others.
"""

from __future__ import annotations

from typing import Any

from .findings import learns_better
from .rainbow import CARTPOLE, CLAIMS, RATES, SETTINGS, at_rate, setting, task
from .study import Arguments, Finding, Study, merged

_RMSPROP = {"hyper": {"optimizer": "rmsprop", "optimizer_eps": 1e-5, "learning_rate": 2.5e-4}}
_LOSSES: dict[str, Arguments] = {
    name: {"hyper": {"loss": loss, "n_step": 1, "double": False}} for name, loss in (("Huber", "huber"), ("MSE", "mse"))
}
_BETTER = learns_better()

_ADAM = {f"Adam + {name}": arm for name, arm in _LOSSES.items()}
_RMS = {f"RMSProp + {name}": merged(arm, _RMSPROP) for name, arm in _LOSSES.items()}
_AT_RATES = {f"{name}, {rate}": arm for rate in RATES for name, arm in _ADAM.items()}


def _task(env: str) -> dict[str, Any]:
    rate = setting(env).dqn
    adam = {arm: {"hyper": at_rate(arm, rate)} for arm in (*_ADAM, *(_AT_RATES if env == CARTPOLE else ()))}
    return task(env, adam | {arm: {"hyper": {"train_freq": rate.train_freq}} for arm in _RMS})


STUDY = Study(
    name="optimizers",
    claim="DQN learns best with Adam and the squared error; with RMSProp Huber's loss is the better one (Obando-Ceron "
    "and Castro 2021, arXiv 2011.14826, section 5.4).",
    base={"agent": "dqn"},
    tasks={name: _task(name) for name in SETTINGS},
    arms={**_ADAM, **_RMS, **_AT_RATES},
    figures={"Optimisers and losses": (*_ADAM, *_RMS), "Learning rates": ("Adam + Huber", "Adam + MSE", *_AT_RATES)},
    findings=(
        Finding("4. With Adam, is the squared error better?", "Adam + MSE", "Adam + Huber", _BETTER),
        Finding("4. With Adam, is the squared error better?", "Adam + MSE", "Adam + Huber", _BETTER, together=True),
        Finding("4. With RMSProp, is Huber's loss better?", "RMSProp + Huber", "RMSProp + MSE", _BETTER, together=True),
        *(
            Finding("4. Are Adam and the squared error the best pair?", "Adam + MSE", arm, _BETTER, together=True)
            for arm in _RMS
        ),
        *(
            Finding(
                f"3. Does the squared error help at {rate}?", f"Adam + MSE, {rate}", f"Adam + Huber, {rate}", _BETTER
            )
            for rate in RATES
        ),
    ),
    seeds=10,
    claims={number: CLAIMS[number] for number in "34"},
    batched=True,
    other=_task,
)
