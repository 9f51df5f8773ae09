"""Which environments have a JAX twin, and where it is."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..types import Env
from . import brax, minatar_games
from .make import LESSON, EnvOptions

TWINS = {  # Gymnasium id -> "module:builder", a module of this package
    "Acrobot-v1": "acrobot:acrobot",
    "CartPole-v1": "cartpole:cartpole",
    "MountainCar-v0": "mountain_car:mountain_car",
    "Pendulum-v1": "pendulum:pendulum",
}
FAMILIES = (brax, minatar_games)  # each with `ids`, `twin`, and OPTIONS: what its twins can be told
OPTIONS = ("time_limit",)  # the same of TWINS


def has_twin(env_id: str) -> bool:
    """Imports neither JAX nor Brax."""
    return env_id in TWINS or _family(env_id) is not None


def unknown(env_id: str, options: EnvOptions) -> dict[str, Any]:
    """What the options change that a twin cannot."""
    known, plain = (*_options(env_id), *LESSON), EnvOptions()._asdict()
    return {name: value for name, value in options._asdict().items() if name not in known and value != plain[name]}


def twin(env_id: str, options: EnvOptions | None = None) -> Env | None:
    """The JAX environment that conforms to Gymnasium's `env_id`, or None; imports JAX only if there is one.

    It takes those of the options that are not `unknown`; where one is None, its own holds.
    """
    if not has_twin(env_id):
        return None
    changed = {} if options is None else {name: getattr(options, name) for name in _options(env_id)}
    told = {name: value for name, value in changed.items() if value is not None}
    if env_id not in TWINS:
        return _family(env_id).twin(env_id, **told)
    module, builder = TWINS[env_id].split(":")
    return getattr(import_module(f".{module}", __package__), builder)(**told)


def _options(env_id: str) -> tuple[str, ...]:
    return OPTIONS if env_id in TWINS else _family(env_id).OPTIONS


def _family(env_id: str) -> Any:
    return next((family for family in FAMILIES if env_id in family.ids()), None)
