"""Kinds of action values: what a network says of the returns of an action, and how that is learned.

Whatever the kind, an actor runs a plain chain of layers. What is linear in the last layer is worked into its weights:
a mean over quantiles, and, for fractions that all observations share, the embedding of implicit quantiles too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..distributions import distributional_greedy, epsilon_greedy
from ..losses import huber, project, quantile_huber
from ..networks import embedded
from ..types import Linear

Weights = tuple[Linear, ...]


class Returns(NamedTuple):
    """A kind of action values. All but `weights` and `acting` are functions of one sample.

    `numbers` outputs of the network are about one action; `at` [numbers] says what each is about, a return or a
    fraction, and is () where there is nothing to say.
    """

    numbers: int
    at: Callable[[Any, Any], Any]  # (hyper, key) -> at
    weights: Callable[[Weights, Any], Weights]  # (learned weights, at) -> those of plain layers
    acting: Callable[[Weights], Weights]  # learned weights -> those that an actor has
    outputs: int  # for each action, of an actor's network
    head: Callable[[Any, dict], Any]  # (an actor's outputs, knobs) -> Dist
    knobs: Callable[[Any], dict]  # hyper -> what the head needs, beside epsilon
    target: Callable[[Any, Any, Any, Any], Any]  # (reward, discount, outputs of what follows, at) -> target
    loss: Callable[[Any, Any, Any], tuple]  # (outputs, at, target) -> (loss, size of the error, value)


def _same(weights: Weights, at: Any = None) -> Weights:
    return weights


def _no_knobs(hyper: Any) -> dict:
    return {}


def expected(loss: Callable[[jax.Array], jax.Array] = huber) -> Returns:
    """The mean of the returns; `loss` is of the temporal-difference error (Mnih et al. 2015)."""

    def target(reward, discount, outputs, at):
        return reward + discount * outputs[0]

    def judged(outputs, at, target):
        error = target - outputs[0]
        return loss(error), jnp.abs(error), outputs[0]

    return Returns(
        1, lambda hyper, key: (), _same, _same, 1, epsilon_greedy, _no_knobs, target, judged
    )  # fmt: skip


def expectation(logits: jax.Array, support: jax.Array) -> jax.Array:
    """The mean of the returns `support` [atoms], whose logits are given."""
    return jnp.sum(jax.nn.softmax(logits) * support)


def categorical(atoms: int, actions: int = 1) -> Returns:
    """Logits of returns that lie evenly between the hyper-parameters v_min and v_max (Bellemare et al. 2017, arXiv
    1707.06887, algorithm 1: C51).

    The loss is the cross-entropy from the projected target, the error its divergence from what it can be at the least
    (Hessel et al. 2018, arXiv 1710.02298, section "The Integrated Agent"). Raises ValueError for less than two atoms.
    """
    if atoms < 2:
        raise ValueError(f"atoms={atoms} make no distribution; use atoms=51")

    def support(hyper, key) -> jax.Array:
        steps = jnp.arange(atoms, dtype=jnp.float32) / (atoms - 1)
        return hyper.v_min + (hyper.v_max - hyper.v_min) * steps

    def knobs(hyper) -> dict:
        return {"v_min": hyper.v_min, "v_max": hyper.v_max, "actions": jnp.zeros(actions)}

    def target(reward, discount, logits, at):
        return project(reward + discount * at, jax.nn.softmax(logits), at)

    def loss(logits, at, target):
        cross_entropy = -jnp.sum(target * jax.nn.log_softmax(logits))
        least = -jnp.sum(jax.scipy.special.xlogy(target, target))
        return cross_entropy, jnp.maximum(cross_entropy - least, 0.0), expectation(logits, at)

    return Returns(atoms, support, _same, _same, atoms, distributional_greedy, knobs, target, loss)


def midpoints(quantiles: int) -> jax.Array:
    """The fractions in the middle of even parts of [0, 1] (Dabney et al. 2018, lemma 2)."""
    return (jnp.arange(quantiles, dtype=jnp.float32) + 0.5) / quantiles


def quantile(quantiles: int) -> Returns:
    """Quantiles of the returns at fixed fractions (Dabney et al. 2018, arXiv 1710.10044: QR-DQN).

    The error is the loss. Raises ValueError for less than two quantiles.
    """
    if quantiles < 2:
        raise ValueError(f"atoms={quantiles} make no distribution; use atoms=51")

    def target(reward, discount, outputs, at):
        return reward + discount * outputs

    def loss(outputs, at, target):
        value = quantile_huber(outputs, at, target)
        return value, value, jnp.mean(outputs)

    def averaged(weights: Weights) -> Weights:
        """The mean of an action's quantiles as one output."""
        w, b = weights[-1]
        last = Linear(jnp.mean(w.reshape(w.shape[0], -1, quantiles), -1), jnp.mean(b.reshape(-1, quantiles), -1))
        return (*weights[:-1], last)

    def fractions(hyper, key) -> jax.Array:
        return midpoints(quantiles)

    return Returns(quantiles, fractions, _same, averaged, 1, epsilon_greedy, _no_knobs, target, loss)


def implicit(quantiles: int) -> Returns:
    """Quantiles at fractions that are drawn anew for each use, through an embedding (Dabney et al. 2018, arXiv
    1806.06923: IQN).

    The last layer follows on the product of embedding and features at once, as in Obando-Ceron and Castro 2021 (arXiv
    2011.14826), and all samples of a batch share their fractions, so that each fraction is a last layer of its own:
    one product for all of them, where a draw for each sample would embed thousands. The gradient is of the same mean
    loss. An actor's last layer is the mean at fixed fractions, `midpoints`.
    """
    fixed = quantile(quantiles)

    def fractions(hyper, key) -> jax.Array:
        return jax.random.uniform(key, (quantiles,))

    def acting(weights: Weights) -> Weights:
        return fixed.acting(embedded(weights, midpoints(quantiles)))

    return fixed._replace(at=fractions, weights=embedded, acting=acting)
