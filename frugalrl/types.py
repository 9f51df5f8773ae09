"""The records that cross file boundaries: the glossary of the library.

A record is a NamedTuple of data or of pure functions. Nothing inherits and nothing is registered; a lever takes a
record and returns one of the same kind. This file imports neither JAX nor NumPy at run time, so that actor processes
can use it cheaply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jax

Key = "jax.Array"  # a typed JAX PRNG key
Tree = Any  # any pytree of arrays


class Discrete(NamedTuple):
    """A space of the integers 0 .. n-1."""

    n: int


class Box(NamedTuple):
    """A space of arrays; `low` and `high` are floats or tuples that broadcast to `shape`."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: Any = -float("inf")
    high: Any = float("inf")


Space = Discrete | Box


class Step(NamedTuple):
    """Out of an environment, after one action."""

    obs: Tree  # to act on next: after an auto-reset, the first observation of the new episode
    reward: Any  # float32
    terminated: Any  # bool: the task ended here, there is no future to bootstrap from
    truncated: Any  # bool: cut off here, by a time limit say; the future goes on and is bootstrapped
    next_obs: Tree  # before any auto-reset: the one to bootstrap from


class Transition(NamedTuple):
    """Out of an actor, into memory; the same in every runtime."""

    obs: Tree
    action: Any
    reward: Any
    terminated: Any
    truncated: Any
    next_obs: Tree
    log_prob: Any  # float32, of `action` under the (compressed) policy that chose it
    version: Any  # int32, learner updates that policy had seen


class Batch(NamedTuple):
    """Out of memory, into `Agent.grad`."""

    data: Transition  # [batch, time, ...]
    weight: Any  # [batch]; prioritised replay and `levers.correct.corrected` both multiply it
    index: Any  # [batch]; where the windows came from, for Memory.update
    extra: Tree = ()  # [batch, time, ...]; what Agent.prepare made of the rollouts, if the memory deals in them
    chance: Any = 1.0  # [batch]; in proportion to how likely each was drawn; a number if all were alike


class Trace(NamedTuple):
    """Consecutive steps of one stream, as a Corrector reads them: all [time], float32 but for `ended`.

    `value` is what is learned: V(obs), or Q(obs, action) of the action taken. `bootstrap` is what `next_obs`, before
    any auto-reset, is worth to the agent's own policy: V(next_obs), or the mean of Q(next_obs, .) over that policy;
    any number where the discount is 0.
    """

    reward: Any
    discount: Any  # gamma, and 0 where the step terminated
    ended: Any  # bool, terminated or truncated: the next step belongs to another episode
    value: Any
    bootstrap: Any
    log_ratio: Any  # log-probability of the action, the agent's own policy minus the one that acted
    prob: Any = None  # probability of the action under the agent's own policy; only tree-backup reads it


class Target(NamedTuple):
    """What the steps of a Trace should be worth, [time]; no gradient flows through it."""

    target: Any  # for `value`
    advantage: Any  # target - value; of state values, what multiplies the gradient of the action's log-probability


Corrector = Callable[[Trace, Any], Target]  # (trace, lambda), for one trace; the caller maps it


class Env(NamedTuple):
    """A pure environment of one instance; the runtime maps it over many. `step` resets itself when an episode ends."""

    reset: Callable[[Any], tuple[Tree, Tree]]  # key -> (env_state, obs)
    step: Callable[[Tree, Any, Any], tuple[Tree, Step]]  # (env_state, action, key) -> (env_state, Step)
    obs: Box
    actions: Space
    time_limit: int | None  # steps after which an episode is truncated, if there is such a limit


class Linear(NamedTuple):
    """The weights of one layer, float32: w is [in, out] or, of a convolution, [height, width, in, out]; b is [out].

    Of a normalisation w is a gain, [out] too; a compressor leaves those as they are.
    """

    w: Any
    b: Any


class Network(NamedTuple):
    init: Callable[[Any], Tree]  # key -> params
    apply: Callable[[Tree, Any, Any], Any]  # (params, one observation, key) -> outputs
    obs: Box  # what it takes
    layers: tuple | None  # what a pruner and an exporter read; None for a wrapped foreign model


class Policy(NamedTuple):
    """What an actor needs, nothing more. This is what is compressed."""

    params: Tree  # of the network: the part a Compressor packs
    knobs: Tree  # a few numbers that shape behaviour (exploration), sent as they are


class Info(NamedTuple):
    metrics: dict[str, Any]
    priority: Any  # [batch]; for Memory.update


def _unchanged(state: Tree, rollout: Transition, stream: Any) -> Tree:
    return state


def _nothing(state: Tree, rollout: Transition) -> Tree:
    return ()


def _same(state: Tree, worker: Any) -> Tree:
    return state


def _weights(state: Tree, weights: Tree) -> Tree:
    return weights


def _donor(state: Tree, donor: Tree) -> Tree:
    return donor


class Crew(NamedTuple):
    """What an agent has that is a population: actors that act side by side, in generations of whole rollouts."""

    members: int
    policies: Callable[[Tree], Policy]  # state -> their policies; params [members, ...], knobs that all have
    # (state, rollout [time, lanes, ...], key) -> state: what follows from what they did, before anything is learned
    # from it; the lanes are divided evenly, the first of them are the first member's
    turn: Callable[[Tree, Transition, Any], Tree]


class Agent(NamedTuple):
    """A learning algorithm. Hyper-parameters are leaves of the state, never closures, so a population can vary them."""

    init: Callable[[Any, Tree], Tree]  # (key, hyper) -> state
    policy: Callable[[Tree], Policy]
    head: Callable[[Any, Tree], Any]  # (network outputs, knobs) -> Dist; works on NumPy and JAX arrays alike
    dist: Callable[[Policy, Any, Any], Any]  # (policy, obs, key) -> Dist: `head` after `network.apply`
    grad: Callable[[Tree, Batch, Any], tuple[Tree, Info]]
    apply: Callable[[Tree, Tree], Tree]  # (state, grads) -> state
    network: Network  # the one an actor runs
    ratio_from: int = 0  # first step of a window whose action needs an importance ratio: 1 for action values, else 0
    # (state, rollout [time, lanes, ...], stream) -> state: what new data changes without a gradient, normalisers say
    observe: Callable[[Tree, Transition, Any], Tree] = _unchanged
    # (state, rollout [time, ...] of one lane) -> extra [time, ...]: targets worked out once for several updates
    prepare: Callable[[Tree, Transition], Tree] = _nothing
    # (state, number) -> state: what one of several actor-learners acts and learns with, an exploration of its own say
    own: Callable[[Tree, Any], Tree] = _same
    # (state, weights) -> weights: of a network that takes observations as they are, from one that takes them as `state`
    # normalises them; and back
    fold: Callable[[Tree, Tree], Tree] = _weights
    unfold: Callable[[Tree, Tree], Tree] = _weights
    # state -> the state whose policy has no noise in its weights; None if no policy has any
    settled: Callable[[Tree], Tree] | None = None
    # (state, donor) -> a state that acts as `donor` does and is otherwise as it was; `donor`, where all that is learned
    # acts
    graft: Callable[[Tree, Tree], Tree] = _donor
    crew: Crew | None = None  # of a population; `policy` is then the one that is evaluated and kept


def update(agent: Agent, state: Tree, batch: Batch, key: jax.Array) -> tuple[Tree, Info]:
    """One learner update: `apply` after `grad`."""
    grads, info = agent.grad(state, batch, key)
    return agent.apply(state, grads), info


def best_policy(agent: Agent, state: Tree) -> Policy:
    """The policy to evaluate and to keep: without noise in its weights."""
    return agent.policy(agent.settled(state) if agent.settled else state)


class Memory(NamedTuple):
    """Where transitions wait to be learned from. Lanes are environments; a stream is one actor's group of lanes."""

    init: Callable[[], Tree]  # an empty memory
    add: Callable[..., Tree]  # (memory, transitions [time, lanes, ...], stream=0) -> memory
    # (memory, key, prepare) -> (memory, draw): begin an iteration; draw(memory, key, i) is the Batch of its update i
    deal: Callable[[Tree, Any, Callable], tuple[Tree, Callable[[Tree, Any, Any], Batch]]]
    update: Callable[[Tree, Any, Any], Tree]  # (memory, index, priority) -> memory
    cut: Callable[[Tree, Any], Tree]  # (memory, stream) -> memory with that stream's newest steps truncated


class Cadence(NamedTuple):
    """How an agent takes turns with its environments."""

    steps: int  # environment steps, of all environments together, that go with `updates` learner updates
    updates: int
    starts: int = 0  # environment steps before the first update
    rollout: int = 0  # learns from rollouts of so many steps of each environment; 0 if any number of steps will do
    waits: bool = False  # actors wait for the policy of the last update: what is called on-policy
    learners: int = 0  # actor-learners, which bring gradients of their own rollouts; 0 if one Learner computes them


class Recipe(NamedTuple):
    """How the name of an agent becomes an Agent and a Memory."""

    static: Any  # a NamedTuple of what shapes the program, with its defaults
    hyper: Any  # a NamedTuple of what may differ between the members of a population, with its defaults
    assemble: Callable[..., Agent]  # (static, obs, actions), and a Corrector of its values; may raise ValueError
    cadence: Callable[[Any], Cadence]  # of static
    memory: Callable[..., Memory]  # (static, example, *, lanes, unroll, streams); `stack` of a replay
    # the knobs of a policy that acts as well as it can; those that the agent's policies lack are left out
    greedy: Callable[[Space], dict[str, Any]]
    # what its Correctors are of: "state" or "action" values, or the "weight" of a sample; or a function of static
    values: str | Callable[[Any], str] = "state"
    corrector: str = "none"  # its own, what --correct auto is


class Packet(NamedTuple):
    """A policy on the wire."""

    # a Linear or a QuantLinear for each layer with weights, in order; only a matrix is quantised, and not a first one
    # that reads a vector. Then, if the policy was calibrated, its Ranges.
    weights: tuple
    knobs: Tree


class QuantLinear(NamedTuple):
    """One layer in int8, symmetric, one scale per output: w = q * scale."""

    q: Any  # int8, shaped as Linear.w
    scale: Any  # float32 [out]
    b: Any  # float32 [out]


class Ranges(NamedTuple):
    """Between what values the activations of a network lie, zero included: what int8 throughout needs to know.

    The first entry is of the observation, as floats; then comes one for each layer, in the order in which they are
    applied (the body of a `Residual` before the sum). `levers.compress.calibrate` finds them.
    """

    low: Any  # float32 [1 + layers]
    high: Any  # float32 [1 + layers]


class Compressor(NamedTuple):
    """Stateless, so that any packet may be skipped."""

    name: str
    encode: Callable[[Policy], Packet]
    decode: Callable[[Packet], Policy]


class Session(NamedTuple):
    """One policy network in one engine at one batch size."""

    load: Callable[[tuple], None]  # the weights of a Packet
    run: Callable[[Any], Any]  # obs [batch, ...] -> float32 outputs [batch, n], a fresh NumPy array


class Engine(NamedTuple):
    """Something that runs a network on NumPy arrays, outside of a training program."""

    name: str
    modes: tuple[str, ...]  # which packets it can run: those of the Compressors of these names
    missing: Callable[[], str | None]  # None if usable here, else how to install it
    build: Callable[[tuple, Box, int, str], Session]  # (layers, obs, batch, mode) -> Session
