"""Brax's environments (Freeman et al. 2021, arXiv 2106.13281), physics in JAX, through the `brax` package.

`brax/<name>` has the physics that Brax takes by itself, "generalized"; `brax/<name>-<backend>` one of the others.
Episodes are truncated after 1000 steps, as in Brax's own training. The same environment is the twin that trains in a
compiled program, and a gymnasium.Env for everything else.

Swimmer is left out, because the package's model of a fluid does not run with the JAX that this library needs.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..types import Box, Env
from .make import mujoco_warns, needed

if TYPE_CHECKING:
    import gymnasium

NAMES = (
    "ant", "halfcheetah", "hopper", "humanoid", "humanoidstandup", "inverted_double_pendulum", "inverted_pendulum",
    "pusher", "reacher", "walker2d",
)  # fmt: skip
BACKENDS = ("generalized", "spring", "positional", "mjx")  # the first is the one without a suffix
TIME_LIMIT = 1000
OPTIONS = ("time_limit",)  # of the environment, that `twin` takes


@cache
def _table() -> dict[str, dict[str, str]]:
    """What `play` takes for each id."""
    ends = ("", *(f"-{backend}" for backend in BACKENDS[1:]))
    return {
        f"brax/{name}{end}": {"name": name, "backend": backend}
        for name in NAMES
        for end, backend in zip(ends, BACKENDS, strict=True)
    }


def ids() -> list[str]:
    return list(_table())


def register() -> None:
    """Make the environments known to Gymnasium, unless they are already."""
    import gymnasium

    for env_id in set(ids()) - set(gymnasium.registry):
        entry, kwargs = "frugalrl.envs.brax:play", dict(_table()[env_id])
        gymnasium.register(env_id, entry_point=entry, kwargs=kwargs, max_episode_steps=TIME_LIMIT)


def play(name: str, backend: str, render_mode: str | None = None, **kwargs: Any) -> gymnasium.Env:
    """The environment for Gymnasium; `kwargs` are of Brax's class, {"healthy_reward": 0.5} of ant, say.

    Raises UsageError if it is to render.
    """
    if render_mode is not None:
        raise UsageError("Brax's environments draw no pictures here: leave the video out")
    from .played import Played

    return Played(_environment(name, backend, json.dumps(kwargs))(None))  # Gymnasium cuts its episodes off


def twin(env_id: str, time_limit: int = TIME_LIMIT) -> Env:
    """The same as an `Env`: observations float32 [n] without bounds, actions float32 [m] from -1 to 1."""
    return _environment(**_table()[env_id], kwargs="{}")(time_limit)


@cache
def _environment(name: str, backend: str, kwargs: str) -> Callable[[int | None], Env]:
    """time limit -> `Env` of Brax's class, given `kwargs` (JSON); its state is a tuple of arrays, the leaves of Brax's.

    Brax's own Python runs here only, with JAX's usual promotion of dtypes and ranks, and leaves two closed expressions.
    """
    import jax
    import jax.numpy as jnp
    from jax.extend.core import jaxpr_as_fun

    from .. import rng
    from .autoreset import autoreset

    def strong(state: Any) -> Any:  # some rewards are Python's numbers
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state)

    with _brax_envs() as envs, jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        env = envs.get_environment(name, backend=backend, **json.loads(kwargs))
        actions = Box((env.action_size,), low=-1.0, high=1.0)
        first, like = jax.make_jaxpr(lambda key: strong(env.reset(key)), return_shape=True)(rng.key(0))
        following = jax.make_jaxpr(lambda state, action: strong(env.step(state, action)))(
            like, jnp.zeros(actions.shape, jnp.float32)
        )
    structure = jax.tree.structure(like)

    def start(key: jax.Array) -> tuple:
        return tuple(jaxpr_as_fun(first)(key))

    def observe(state: tuple) -> jax.Array:
        return jax.tree.unflatten(structure, state).obs

    def advance(state: tuple, action: jax.Array) -> tuple[tuple, jax.Array, jax.Array]:
        state = tuple(jaxpr_as_fun(following)(*state, action))
        after = jax.tree.unflatten(structure, state)
        return state, after.reward, after.done > 0

    obs = Box(like.obs.shape)
    return cache(lambda time_limit: autoreset(start, advance, observe, obs, actions, time_limit, costly=True))


@contextmanager
def _brax_envs() -> Iterator[Any]:
    """Brax's module of environments, while it is used.

    Its warnings are for its own authors, and what it prints when it is imported is about packages it can do without.
    """
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        envs = needed("brax.envs", "brax")
        mujoco = import_module("mujoco")
        if mujoco.get_mju_user_warning() is None:
            mujoco.set_mju_user_warning(mujoco_warns)
        yield envs
