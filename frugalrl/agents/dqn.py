"""DQN: Q-learning with a replay memory and a target network (Mnih et al. 2015), and the components that Rainbow adds to
it (Hessel et al. 2018, arXiv 1710.02298), each a switch.

The parts are elsewhere: kinds of action values in `returns.py`, duelling and noisy networks in `networks.py`, n-step
windows and priorities in `memory.py`. The other agents of this file are the same learner with other defaults.

The walk of an observation to a gradient, which began in `envs/`, ends in `grad`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..distributions import EpsilonGreedy
from ..losses import huber, munchausen_bonus, n_step, soft, squared
from ..memory import in_turns, replay
from ..networks import (
    Dense,
    Form,
    Inputs,
    absorbed,
    dueling,
    embedding,
    frozen,
    noisy,
    out_features,
    plain,
    released,
    rescaled,
    to_unit,
    torso,
)
from ..networks import network as build_network
from ..types import (
    Agent,
    Batch,
    Box,
    Discrete,
    Info,
    Network,
    Policy,
    Recipe,
    Space,
    Transition,
)
from .descent import PLAIN, Numerics
from .returns import Returns, categorical, expected, implicit, quantile
from .schedules import epsilon, importance_exponent, target_due


class Static(NamedTuple):
    """Numbers and names that shape the program."""

    hidden: tuple[int, ...] = (64, 64)  # widths of the layers
    network: str = "auto"  # or "mlp", "minatar", "planes", "small", "nature", "impala"
    rescale_obs: bool = False  # vectors, from their bounds to -1 and 1
    obs_bounds: tuple[float, ...] = ()  # the most that each number of them is, if not what the environment says
    batch_size: int = 128
    buffer_size: int = 100_000  # environment steps kept
    learning_starts: int = 1_000  # environment steps before the first update
    train_freq: int = 4  # environment steps between rounds of updates
    gradient_steps: int = 1  # updates in a round
    num_envs: int = 4  # environments side by side, of each actor process if there are any
    n_step: int = 1
    double: bool = False
    dueling: bool = False
    noisy: bool = False  # noise in the weights of dense layers, to explore with
    noisy_std: float = 0.5  # of that noise at first, times the square root of a layer's inputs
    frozen_noise: bool = False  # one draw for ever, as in the code of Revisiting Rainbow
    atoms: int = 1  # numbers that describe the returns of an action; 1: their mean
    distribution: str = "categorical"  # or "quantile", "implicit": what they are, if there are more
    prioritized: bool = False
    munchausen: bool = False
    loss: str = "huber"  # or "mse": of mean returns; distributions have their own
    optimizer: str = "adam"  # or "rmsprop": centred, as Mnih et al. 2015 have it
    optimizer_eps: float = 0.0  # beside the root of the mean square gradient; 0: 1e-8 of adam, 0.01 of rmsprop


class Hyper(NamedTuple):
    """Numbers that may differ between the members of a population: leaves of the state."""

    learning_rate: Any = 1e-3
    gamma: Any = 0.99
    tau: Any = 1.0  # how far the target network moves at each target update
    target_update_interval: Any = 1_000  # environment steps between two target updates
    max_grad_norm: Any = 10.0
    exploration_initial_eps: Any = 1.0
    exploration_final_eps: Any = 0.05
    exploration_fraction: Any = 0.2  # of all steps, over which epsilon falls linearly; 0: until the first update
    v_min: Any = -10.0  # the least return that categorical atoms can tell
    v_max: Any = 10.0  # the most
    prioritized_replay_alpha: Any = 0.6  # what errors are raised to; 0: all samples are alike
    prioritized_replay_beta: Any = 0.4  # of the importance weights, at first; 1 at the end of training
    prioritized_replay_eps: Any = 1e-6  # added to errors
    munchausen_alpha: Any = 0.9  # share of the log-policy that is added to the reward
    munchausen_tau: Any = 0.03  # temperature of the policy
    munchausen_clip: Any = 1.0  # the most that the log-policy may take away, before alpha
    total_steps: Any = 100_000  # environment steps of the training run
    steps_per_update: Any = 4.0  # environment steps for each learner update


class State(NamedTuple):
    params: Any
    target: Any
    optimizer: Any
    hyper: Hyper
    version: Any  # int32, learner updates so far
    noise: Any = ()  # the key of the noise that the policy acts with; () for none


def dqn(
    network: Network,
    *,
    form: Form | None = None,
    returns: Returns | None = None,
    double: bool = False,
    munchausen: bool = False,
    prioritized: bool = False,
    noisy: bool = False,
    loss: Callable = huber,
    optimizer: optax.GradientTransformation | None = None,
    inputs: Inputs | None = None,
    numerics: Numerics = PLAIN,
) -> Agent:
    """DQN whose actors run `network`, and whose learner learns `form`, by default the network's own weights.

    `returns` is the kind of the action values, by default their mean, `loss` of whose temporal-difference error is
    taken. `double` picks the bootstrap action by the online network (van Hasselt et al. 2016, equation 4);
    `munchausen` bootstraps from the soft policy of the target network instead, and adds its log-probability to the
    reward (Vieillard et al. 2020, arXiv 2007.14430, equation 5; of several steps, that of the first). `prioritized`
    undoes with weights that samples were drawn by priority, and gives back priorities. `noisy` says that `form` has
    noise: each use of a network draws its own, and the policy that acts has one draw, new with each rollout that comes
    in. `optimizer` is an optax direction, without its learning rate (default Adam, Kingma and Ba 2015). `inputs` says
    that `form` is one for these. `numerics` is the precision of the learner. The number of steps in a return is the
    window of the batch.
    """
    form = Form(network.init, lambda params, key: params) if form is None else form
    returns = expected(loss) if returns is None else returns
    tx = optax.scale_by_adam() if optimizer is None else optimizer

    def init(key, hyper: Hyper) -> State:
        params = numerics.store(form.init(key))
        hyper = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper)
        noise = jax.random.fold_in(key, 1) if noisy else ()
        return State(params, numerics.target(params), numerics.init(tx, params), hyper, jnp.zeros((), jnp.int32), noise)

    def knobs(state: State) -> dict:
        return {"epsilon": epsilon(state)} | returns.knobs(state.hyper)

    def policy(state: State) -> Policy:
        key = None if isinstance(state.noise, tuple) else state.noise
        return Policy(returns.acting(form.weights(numerics.full(state.params), key)), knobs(state))

    def dist(policy: Policy, obs, key=None) -> EpsilonGreedy:
        return returns.head(network.apply(policy.params, obs, key), policy.knobs)

    def grad(state: State, batch: Batch, key) -> tuple[Any, Info]:
        h, data = state.hyper, batch.data
        online, slow = numerics.weights(state.params), numerics.weights(state.target)
        key_obs, key_next, key_target = jax.random.split(key, 3)
        ret = jax.vmap(n_step, (0, 0, 0, None))(data.reward, data.terminated, data.truncated, h.gamma)
        obs, action = data.obs[:, 0], data.action[:, 0]
        next_obs = jax.vmap(lambda x, i: x[i])(data.next_obs, ret.last)
        at, at_target = (returns.at(h, jax.random.fold_in(key, 0)) for key in (key_obs, key_target))

        def outputs(params, obs, key, at):
            """[batch, actions, numbers]."""
            weights = returns.weights(form.weights(params, key), at)
            found = jax.vmap(network.apply, (None, 0, None))(weights, obs, None)
            return found.reshape(found.shape[0], -1, returns.numbers)

        def values(params, obs, key):
            """Those that an actor would see, [batch, actions]."""
            weights = returns.acting(form.weights(params, key))
            return returns.head(jax.vmap(network.apply, (None, 0, None))(weights, obs, None), knobs(state)).values

        def taken(x, action):
            return jnp.take_along_axis(x, action[:, None, None], 1)[:, 0]

        after = outputs(slow, next_obs, key_target, at_target)
        reward = ret.reward
        if munchausen:
            now = jax.vmap(soft, (0, None))(values(slow, obs, key_target), h.munchausen_tau)
            then = jax.vmap(soft, (0, None))(values(slow, next_obs, key_target), h.munchausen_tau)
            bonus = jax.vmap(munchausen_bonus, (0, 0, None, None))(now, action, h.munchausen_alpha, h.munchausen_clip)
            reward += bonus - ret.discount * jnp.sum(then.probs * then.log_probs, -1)
            after = jnp.sum(then.probs[..., None] * after, 1)
        else:
            judge = (online, key_next) if double else (slow, key_target)
            after = taken(after, jnp.argmax(values(judge[0], next_obs, judge[1]), -1))
        target = jax.vmap(returns.target, (0, 0, 0, None))(reward, ret.discount, after, at_target)
        weight = batch.weight * importance(state, batch.chance) if prioritized else batch.weight

        def objective(params):
            found = taken(outputs(params, obs, key_obs, at), action)
            loss, error, value = jax.vmap(returns.loss, (0, None, 0))(found, at, target)
            return jnp.mean(weight * loss), (error, value)

        (value, (error, q)), grads = numerics.gradient(objective, online, state.optimizer)
        priority = (error + h.prioritized_replay_eps) ** h.prioritized_replay_alpha if prioritized else error
        return grads, Info({"loss": value, "q": jnp.mean(q)}, priority)

    def apply(state: State, grads) -> State:
        h = state.hyper
        params, opt = numerics.descend(tx, state.params, state.optimizer, grads, h.learning_rate, h.max_grad_norm)
        version = state.version + 1
        target = numerics.follow(state.target, params, jnp.where(target_due(state, version), h.tau, 0.0))
        return State(params, target, opt, h, version, state.noise)

    agent = Agent(init, policy, returns.head, dist, grad, apply, network, ratio_from=1)
    if inputs is not None:
        agent = agent._replace(
            fold=lambda state, weights: absorbed(weights, *inputs),
            unfold=lambda state, weights: released(weights, *inputs),
        )
    return agent._replace(observe=redrawn, settled=settled) if noisy else agent


def redrawn(state: State, rollout: Transition, stream: Any) -> State:
    """The state whose policy acts with noise of its own: what `observe` is with noisy networks."""
    return state._replace(noise=jax.random.split(state.noise, 1)[0])


def settled(state: State) -> State:
    """The state whose policy acts without noise."""
    return state._replace(noise=())


def importance(state: State, chance: jax.Array) -> jax.Array:
    """What undoes that samples were drawn by priority, at most 1 (Schaul et al. 2016, arXiv 1511.05952, section 3.4).

    The greatest weight is that of the batch, not of the memory.
    """
    chance = jnp.maximum(chance, 1e-30)  # it is 0 in an empty memory
    return (jnp.min(chance) / chance) ** importance_exponent(state)


LOSSES = {"huber": huber, "mse": squared}
OPTIMIZERS = {
    "adam": lambda eps=1e-8: optax.scale_by_adam(eps=eps),
    "rmsprop": lambda eps=0.01: optax.scale_by_stddev(decay=0.95, eps=eps),
}
DISTRIBUTIONS = {
    "categorical": lambda static, actions: categorical(static.atoms, actions),
    "quantile": lambda static, actions: quantile(static.atoms),
    "implicit": lambda static, actions: implicit(static.atoms),
}


def greedy(actions: Space) -> dict[str, Any]:
    """The knobs of a policy that acts as well as it can; which action is best does not depend on v_min and v_max."""
    count = actions.n if isinstance(actions, Discrete) else 0
    return {"epsilon": 0.0, "v_min": 0.0, "v_max": 1.0, "actions": [0.0] * count}


def assemble(static: Static, obs: Box, actions: Space, numerics: Numerics = PLAIN) -> Agent:
    """The DQN that `static` describes, for these spaces. Raises ValueError for choices that do not exist or do not go
    together.
    """
    if not isinstance(actions, Discrete):
        raise ValueError("it chooses among discrete actions")
    for name, table in (("loss", LOSSES), ("optimizer", OPTIMIZERS), ("distribution", DISTRIBUTIONS)):
        if getattr(static, name) not in table:
            raise ValueError(f"{name}={getattr(static, name)!r} does not exist; there are: {', '.join(table)}")
    _check(static)
    returns = expected(LOSSES[static.loss])
    if static.atoms > 1:
        returns = DISTRIBUTIONS[static.distribution](static, actions.n)
    below = torso(static.network, static.hidden, obs)

    def layers(outputs: int) -> tuple:
        return (*below, Dense(outputs, relu=False, gain=1.0))

    eps = {"eps": static.optimizer_eps} if static.optimizer_eps else {}
    is_implicit = static.atoms > 1 and static.distribution == "implicit"
    numbers = 1 if is_implicit else returns.numbers
    form = plain(layers((actions.n + static.dueling) * numbers), obs)
    inputs = to_unit(obs, static.obs_bounds) if static.rescale_obs else None
    if inputs is not None:
        form = rescaled(form, inputs)
    if is_implicit:
        form = embedding(form, out_features(below, obs.shape))
    if static.noisy:
        form = noisy(form, static.noisy_std)
        form = frozen(form) if static.frozen_noise else form
    if static.dueling:
        form = dueling(form, numbers)
    return dqn(
        build_network(layers(actions.n * returns.outputs), obs), form=form, returns=returns, double=static.double,
        munchausen=static.munchausen, prioritized=static.prioritized,
        noisy=static.noisy and not static.frozen_noise,
        optimizer=OPTIMIZERS[static.optimizer](**eps), inputs=inputs, numerics=numerics,
    )  # fmt: skip


def _check(static: Static) -> None:
    """Raises ValueError for switches that do not go together."""
    if static.obs_bounds and not static.rescale_obs:
        raise ValueError("obs_bounds are what rescale_obs=true goes by, which is off; set that too")
    if static.munchausen and static.double:
        raise ValueError("munchausen=true takes no best action that double=true could pick; use double=false")
    if static.munchausen and static.atoms > 1 and static.distribution == "categorical":
        raise ValueError(
            "munchausen=true mixes the returns of all actions, which categorical atoms cannot; use "
            "distribution=quantile or implicit, or atoms=1"
        )


def _recipe(static: Static, hyper: Hyper) -> Recipe:
    return Recipe(static, hyper, assemble, in_turns, replay, greedy, values="weight")


recipe = _recipe(Static(), Hyper())
# Random actions until the first update, and hardly any after it: what explores from there on is the noise.
rainbow = _recipe(
    Static(double=True, dueling=True, noisy=True, n_step=3, atoms=51, prioritized=True),
    Hyper(
        learning_rate=1e-4, exploration_final_eps=0.01, exploration_fraction=0.0, prioritized_replay_alpha=0.5,
    ),
)  # fmt: skip
qrdqn = _recipe(Static(distribution="quantile", atoms=51), Hyper(learning_rate=1e-4))
iqn = _recipe(Static(distribution="implicit", atoms=32), Hyper(learning_rate=1e-4))
mdqn = _recipe(Static(munchausen=True), Hyper())
miqn = _recipe(Static(distribution="implicit", atoms=32, munchausen=True), Hyper(learning_rate=1e-4))
