"""Which Gymnasium environments have a JAX twin, and where it is."""

from __future__ import annotations

from importlib import import_module

from ..types import Env
from . import brax

TWINS = {  # Gymnasium id -> "module:builder", a module of this package
    "Acrobot-v1": "acrobot:acrobot",
    "CartPole-v1": "cartpole:cartpole",
    "MountainCar-v0": "mountain_car:mountain_car",
    "Pendulum-v1": "pendulum:pendulum",
}


def has_twin(env_id: str) -> bool:
    """Imports neither JAX nor Brax."""
    return env_id in TWINS or env_id in brax.ids()


def twin(env_id: str) -> Env | None:
    """The JAX environment that conforms to Gymnasium's `env_id`, or None; imports JAX only if there is one."""
    if not has_twin(env_id):
        return None
    if env_id not in TWINS:
        return brax.twin(env_id)
    module, builder = TWINS[env_id].split(":")
    return getattr(import_module(f".{module}", __package__), builder)()
