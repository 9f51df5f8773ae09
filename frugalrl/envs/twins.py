"""Which environments have a JAX twin, and where it is."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ..types import Env
from . import brax, minatar_games

TWINS = {  # Gymnasium id -> "module:builder", a module of this package
    "Acrobot-v1": "acrobot:acrobot",
    "CartPole-v1": "cartpole:cartpole",
    "MountainCar-v0": "mountain_car:mountain_car",
    "Pendulum-v1": "pendulum:pendulum",
}
FAMILIES = (brax, minatar_games)  # each with `ids`, `twin` and OPTIONS, the environment options that its twins know


def has_twin(env_id: str) -> bool:
    """Imports neither JAX nor Brax."""
    return env_id in TWINS or _family(env_id) is not None


def options(env_id: str) -> tuple[str, ...]:
    """The environment options that a twin knows."""
    family = _family(env_id)
    return family.OPTIONS if family else ()


def twin(env_id: str, changed: Mapping[str, Any] | None = None) -> Env | None:
    """The JAX environment that conforms to Gymnasium's `env_id`, or None; imports JAX only if there is one.

    Of the environment options that are `changed`, it takes those that it knows.
    """
    family = _family(env_id)
    if family is not None:
        known = {name: value for name, value in (changed or {}).items() if name in family.OPTIONS}
        return family.twin(env_id, **known)
    if env_id not in TWINS:
        return None
    module, builder = TWINS[env_id].split(":")
    return getattr(import_module(f".{module}", __package__), builder)()


def _family(env_id: str) -> Any:
    return next((family for family in FAMILIES if env_id in family.ids()), None)
