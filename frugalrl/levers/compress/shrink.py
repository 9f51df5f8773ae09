"""A learner that is pruned while it trains: networks, targets and the optimiser's moments become smaller together.

Units go early in training (`prune.py` says which), as time is saved only afterwards. What is left is distilled from
what was there, on recent observations: policy outputs and values alike, each by its squared error over the variance of
what it should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...agents.descent import by_width, descend
from ...networks import Dense, Layers
from ...networks import network as build_network
from ...types import Agent, Box, Linear
from .prune import LANES, Kept, as_wide_as, kept, rounded, sliced

RECENT = 4096  # observations that are distilled on after a stage
LESSONS, AT_ONCE = 200, 256  # steps of that, and observations in each
LEARNING_RATE, BASE_WIDTH = 1e-3, 64  # of the first of them, falling to 0; see `by_width`


def share_at(share: float, stages: Sequence[float], step: int, steps: int) -> float:
    """The share of each layer's units that is left at environment step `step` of `steps`, on the way to `share`.

    Each of `stages`, parts of the training, removes the same part of what is there.
    """
    passed = sum(step >= int(at * steps) for at in stages)
    return share ** (passed / len(stages))


def widths(hidden: tuple[int, ...], share: float) -> tuple[int, ...]:
    """Widths of layers, narrowed to `share` as `narrowed` does."""
    return hidden if share == 1 else tuple(rounded(units * share, units, LANES) for units in hidden)


def prunable(agent: Agent, hyper: Any, hidden: tuple[int, ...]) -> bool:
    """Whether `smaller` takes the agent's states."""
    try:
        jax.eval_shape(lambda: smaller(agent.init(jax.random.key(0), hyper), hidden))
    except ValueError:
        return False
    return True


def smaller(state: Any, hidden: tuple[int, ...]) -> Any:
    """An agent's state whose networks have the widths `hidden`, the most salient of their units.

    Networks are chains of dense layers, `Linear` [in, out] or, of an ensemble, [members, in, out], anywhere in
    `state.params`. Whatever else in the state is shaped as one of them, a target or moments, keeps the same units.
    Raises ValueError for a state without such networks.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_chain)
    chains = _chains(state)
    owners = {path: _kept_of(chain, hidden) for path, chain in chains.items()}

    def owner(path, chain) -> Any:
        alike = [p for p, other in chains.items() if _shapes(other) == _shapes(chain)]
        named = [p for p in alike if _name(p[-1]) in map(_name, path)]
        return owners[(named or alike)[0]]

    cut = [_sliced_of(chain, owner(path, chain)) if _is_chain(chain) else chain for path, chain in leaves]
    return jax.tree.unflatten(tree, cut)


def reminded(old: Agent, before: Any, new: Agent, after: Any, obs: np.ndarray) -> Any:
    """The state `after`, made `smaller`, its networks trained to give what those of `before` give on `obs` [n, ...].

    Networks that take more than an observation are left as they are.
    """
    was, now = _chains(before), _chains(after)
    taught = {path: chain for path, chain in now.items() if chain[0].w.shape[:-1] == old.network.obs.shape}
    tx = by_width(optax.scale_by_adam(), BASE_WIDTH)

    def outputs(agent: Agent, state: Any, chain: tuple[Linear, ...], obs: Any) -> Any:
        layers = tuple(Dense(layer.w.shape[-1], i + 1 < len(chain)) for i, layer in enumerate(chain))
        network, weights = build_network(layers, old.network.obs), agent.fold(state, chain)
        return jax.vmap(network.apply, (None, 0, None))(weights, obs, None)

    @jax.jit
    def trained(chains: list, obs: Any) -> list:
        wanted = [outputs(old, before, was[path], obs) for path in taught]

        def loss(chains: list, at: Any) -> Any:
            errors = [
                jnp.mean(jnp.square(outputs(new, after, chain, obs[at]) - want[at]))
                / (jnp.mean(jnp.var(want, 0)) + 1e-6)
                for chain, want in zip(chains, wanted, strict=True)
            ]
            return jnp.sum(jnp.stack(errors))

        def step(carry, lesson):
            chains, moments = carry
            at, rate = lesson
            return descend(tx, chains, moments, jax.grad(loss)(chains, at), rate), None

        order = jnp.asarray(np.random.default_rng(0).integers(len(obs), size=(LESSONS, AT_ONCE)))
        rates = LEARNING_RATE * jnp.linspace(1.0, 0.0, LESSONS, endpoint=False)
        return jax.lax.scan(step, (chains, tx.init(chains)), (order, rates))[0][0]

    found = dict(zip(taught, trained(list(taught.values()), jnp.asarray(obs)), strict=True))
    leaves, tree = jax.tree_util.tree_flatten_with_path(after, is_leaf=_is_chain)
    return jax.tree.unflatten(tree, [found.get(path, leaf) for path, leaf in leaves])


def of_one_shape(layers: Layers, weights: list) -> tuple[Layers, list]:
    """The layers that the weights of several seeds are of, pruned or not yet, and those weights.

    Where a run was stopped some seeds may have fewer units than others: those get units that do nothing.
    """
    if len({tuple(layer.b.shape for layer in one) for one in weights}) > 1:
        most = [max(one[i].b.shape[0] for one in weights) for i in range(len(layers))]

        def padded(one: tuple[Linear, ...]) -> tuple[Linear, ...]:
            more = [units - len(layer.b) for layer, units in zip(one, most, strict=True)]
            rows = [0, *more[:-1]]
            return tuple(
                Linear(np.pad(w, [(0, row), (0, unit)]), np.pad(b, (0, unit)))
                for (w, b), row, unit in zip(one, rows, more, strict=True)
            )

        weights = [padded(one) for one in weights]
    return as_wide_as(layers, weights[0]), weights


def _chains(state: Any) -> dict[Any, tuple[Linear, ...]]:
    """The networks in `state.params`, by path. Raises ValueError if there are none."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_chain)
    found = {path: chain for path, chain in leaves if _is_chain(chain) and _name(path[0]) == "params"}
    if not found:
        raise ValueError("its networks are not chains of dense layers, and only those can be pruned")
    return found


def _is_chain(x: Any) -> bool:
    return type(x) is tuple and len(x) > 1 and all(isinstance(layer, Linear) for layer in x)


def _name(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "idx", key)))


def _shapes(chain: tuple[Linear, ...]) -> list[tuple[int, ...]]:
    return [layer.w.shape for layer in chain]


def _kept_of(chain: tuple[Linear, ...], hidden: tuple[int, ...]) -> tuple[Kept, ...]:
    shapes = _shapes(chain)
    if any(len(shape) not in (2, 3) for shape in shapes) or len(shapes) != len(hidden) + 1:
        raise ValueError("its networks are not chains of dense layers, and only those can be pruned")
    layers = tuple(Dense(shape[-1]) for shape in shapes)
    thin = (*map(Dense, hidden), layers[-1])

    def one(weights: tuple[Linear, ...]) -> tuple[Kept, ...]:
        return kept(layers, thin, Box(shapes[0][-2:-1]), weights)

    return one(chain) if len(shapes[0]) == 2 else jax.vmap(one)(chain)


def _sliced_of(chain: tuple[Linear, ...], what: tuple[Kept, ...]) -> tuple[Linear, ...]:
    return sliced(chain, what) if chain[0].w.ndim == 2 else jax.vmap(sliced)(chain, what)
