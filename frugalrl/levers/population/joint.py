"""A population as one agent: many actors that learn from one critic, and that critic from what all of them do.

The agent's own functions are mapped over its actors, with `axes` to say what each has and what they share: of what is
not mapped there is one, so that the critic, its moments and its targets are worked out once for all (Flajolet et al.
2022, arXiv 2206.08888, section 4.2). What makes it CEM-RL or DvD is a Rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...agents.actor_critic import unit
from ...types import Agent, Batch, Crew, Info, Policy, Transition

STATES = 20  # of a batch, on which it is seen what members do


class Rule(NamedTuple):
    """What a population does beside learning: pure functions of its actors' weights [members, ...]."""

    members: int
    learners: int  # the first so many of them follow gradients
    begin: Callable[[Any, Any], tuple[Any, Any]]  # (key, actors) -> (memory, actors)
    # (memory, actors, fitness float32 [members], key) -> (memory, new actors, or None if they go on): a generation ends
    turn: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    # (memory, version, actors, behaviour, gradients of the learners [learners, ...]) -> (gradients, metrics);
    # `behaviour` is actors -> what they do [members, n], in half ranges of an action
    guide: Callable[[Any, Any, Any, Callable, Any], tuple[Any, dict]]
    best: Callable[[Any, Any], Any]  # (memory, actors) -> the weights to evaluate and to keep


class State(NamedTuple):
    """Of a population."""

    agent: Any  # a state of the agent whose actor's weights, moments and targets are [members, ...]
    memory: Any  # of the Rule
    fitness: Any  # float32 [members], of the last generation; NaN before the first

    @property
    def version(self) -> Any:
        """Learner updates so far."""
        return self.agent.version


def joins(agent: Agent, hyper: Any) -> bool:
    """Whether it has an actor beside its critics."""
    state = jax.eval_shape(agent.init, jax.random.key(0), hyper)
    return {"actor", "critic"} <= set(getattr(state.params, "_fields", ()))


def fitness(rollout: Transition, members: int) -> Any:
    """The mean return of an episode, float32 [members], as a rollout [time, lanes, ...] of each member tells it.

    It begins with new episodes; the lanes are divided evenly, the first of them are the first member's. Its last
    episodes may be unfinished, and count as what they are: episodes that are at least as long. What a step of an age
    brings, a mean over the episodes that got to it, counts as much as episodes are likely to get to it, a share that
    each end lowers among those that were as old (Kaplan and Meier 1958, and for what adds up on the way Lin et al.
    1997). Where every episode has ended that is the mean of their returns; a member without an end has the mean of what
    its lanes have so far. One that falls after 10 steps, each worth 1, and stands for the other 190, has 100: more than
    one that always falls after 20, and less than one that never does.
    """
    steps, lanes = rollout.reward.shape
    ended = rollout.terminated | rollout.truncated
    time = jnp.arange(steps)[:, None]
    begun = jnp.where(ended, time + 1, 0)  # when the next one begins
    age = time - jnp.concatenate([jnp.zeros_like(begun[:1]), jax.lax.cummax(begun)[:-1]])
    whose = jnp.broadcast_to(jnp.arange(lanes) // (lanes // members), age.shape)
    values = jnp.stack([jnp.ones(age.shape), ended.astype(jnp.float32), rollout.reward.astype(jnp.float32)], -1)
    count, ends, reward = jnp.moveaxis(jnp.zeros((members, steps, 3)).at[whose, age].add(values), -1, 0)
    count = jnp.maximum(count, 1.0)
    gets_there = jnp.cumprod(1 - ends / count, 1)
    return jnp.sum(reward / count * jnp.concatenate([jnp.ones((members, 1)), gets_there[:, :-1]], 1), 1)


def joint(agent: Agent, rule: Rule) -> Agent:
    """`agent` with as many actors as the Rule has members, in one state.

    Each update draws a batch for every learner, together one [learners * batch, ...]; the loss of the critic is the
    mean of theirs. The policy is the one to evaluate and to keep; those that act are `crew.policies`.
    """

    def init(key, hyper) -> State:
        key_agent, key_rule = jax.random.split(key)
        many = jax.vmap(agent.init, (0, None))(jax.random.split(key_agent, rule.members), hyper)
        state = _mapped(lambda own, x: x if own else x[0], many)
        memory, actors = rule.begin(key_rule, state.params.actor)
        return State(_renewed(state, actors), memory, jnp.full(rule.members, jnp.nan))

    def _renewed(state, actors):
        """Actors that begin anew, with targets and moments of their own."""
        kinds = axes(state)
        return jax.vmap(agent.graft, (kinds, kinds), kinds)(state, _with_actor(state, actors))

    def policy(state: State) -> Policy:
        return agent.policy(_with_actor(state.agent, rule.best(state.memory, state.agent.params.actor)))

    def policies(state: State) -> Policy:
        return jax.vmap(agent.policy, (axes(state.agent),), Policy(0, None))(state.agent)

    def grad(state: State, batch: Batch, key) -> tuple[Any, Info]:
        actors, learning = state.agent.params.actor, _first(state.agent, rule.learners)
        batches = jax.tree.map(lambda x: x.reshape(rule.learners, -1, *x.shape[1:]) if jnp.ndim(x) else x, batch)
        kinds = jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, batches)
        keys = jax.random.split(key, rule.learners)
        grads, info = jax.vmap(agent.grad, (axes(learning), kinds, 0))(learning, batches, keys)
        grads = _mapped(lambda own, x: x if own else jnp.mean(x, 0), grads)

        obs = batch.data.obs[:STATES, 0]
        knobs = agent.policy(_with_actor(state.agent, jax.tree.map(lambda x: x[0], actors))).knobs
        knobs = knobs | {"random": jnp.float32(0)}

        def behaviour(actors):
            def does(actor, obs):
                return unit(agent.dist(Policy(actor, knobs), obs, None).mode(), knobs["low"], knobs["high"])

            return jax.vmap(jax.vmap(does, (None, 0)), (0, None))(actors, obs).reshape(rule.members, -1)

        guided, told = rule.guide(state.memory, state.version, actors, behaviour, grads.actor)
        told |= {"fitness_best": jnp.max(state.fitness), "fitness_mean": jnp.mean(state.fitness)}
        metrics = jax.tree.map(lambda x: jnp.mean(x, 0), info.metrics)
        return grads._replace(actor=guided), Info(metrics | told, info.priority.reshape(-1))

    def apply(state: State, grads: Any) -> State:
        learning = _first(state.agent, rule.learners)
        kinds = axes(learning)
        learned = jax.vmap(agent.apply, (kinds, axes(grads)), kinds)(learning, grads)
        whole = jax.tree_util.tree_map_with_path(
            lambda path, new, old: jnp.concatenate([new, old[rule.learners :]]) if _is_own(path) else new,
            learned, state.agent,
        )  # fmt: skip
        return state._replace(agent=whole)

    def turn(state: State, rollout: Transition, key) -> State:
        found = fitness(rollout, rule.members)
        memory, actors = rule.turn(state.memory, state.agent.params.actor, found, key)
        after = State(state.agent if actors is None else _renewed(state.agent, actors), memory, found)
        # what acted before the first update was chance, not its weights
        return jax.tree.map(lambda new, old: jnp.where(state.version > 0, new, old), after, state)

    def graft(state: State, donor: State) -> State:
        return donor

    crew = Crew(rule.members, policies, turn)
    return agent._replace(init=init, policy=policy, grad=grad, apply=apply, graft=graft, crew=crew)


def axes(tree: Any) -> Any:
    """What of a state, or of gradients, is mapped over members (0) and what they share (None)."""
    return _mapped(lambda own, x: 0 if own else None, tree)


def _mapped(function: Callable[[bool, Any], Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, x: function(_is_own(path), x), tree)


def _is_own(path: tuple) -> bool:
    """The actor, its moments and its targets are each member's own."""
    return any(getattr(part, "name", None) == "actor" for part in path)


def _first(state: Any, count: int) -> Any:
    return _mapped(lambda own, x: x[:count] if own else x, state)


def _with_actor(state: Any, actor: Any) -> Any:
    return state._replace(params=state.params._replace(actor=actor))
