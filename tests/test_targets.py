"""Correctors against rlax, against the sums of their papers, on data of the own policy, and on a small MDP."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frugalrl.levers.correct import ACTION_VALUES, STATE_VALUES, retrace, tis, tree_backup, truncated, vtrace
from frugalrl.losses import lambda_return, n_step
from frugalrl.types import Corrector, Target, Trace

RLAX = json.loads((Path(__file__).parent / "oracles" / "rlax_targets.json").read_text())
TABLES = {"state": STATE_VALUES, "action": ACTION_VALUES}
CELLS = [(kind, name) for kind, table in TABLES.items() for name in table]
TABLE = pytest.mark.parametrize(("kind", "name"), CELLS)


@cache
def mapped(corrector: Corrector):
    """The corrector over a batch of traces, with lambda as data, compiled."""
    return jax.jit(jax.vmap(corrector, (0, None)))


def assert_close(got: Target, target, advantage, **tolerance) -> None:
    np.testing.assert_allclose(got.target, target, **tolerance)
    np.testing.assert_allclose(got.advantage, advantage, **tolerance)
    assert got.target.dtype == got.advantage.dtype == np.float32


AS_RLAX = {  # which has truncated ratios but no truncated products
    "state": {
        "none": lambda_return,
        "tis": tis(inf),
        **{f"vtrace {bar}": vtrace(bar, 1.0, bar) for bar in (0.7, 1.0, 2.5)},
    },
    "action": {
        "none": lambda_return,
        "tis": tis(inf, ratio_from=1),
        "retrace": retrace(),
        "tree-backup": tree_backup(),
    },
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in AS_RLAX.items() for name in table])
def test_a_corrector_is_rlaxs(kind, name):
    """Over terminations and truncations; `oracles/rlax_targets.py` made the numbers."""
    cases = [case for case in RLAX["cases"] if case["kind"] == kind]
    corrector = jax.jit(AS_RLAX[kind][name])
    assert len(cases) == 3
    for case in cases:
        assert set(AS_RLAX[kind]) == set(case["targets"]["1.0"])
        trace = Trace(**{k: np.asarray(v, np.bool_ if k == "ended" else np.float32) for k, v in case["trace"].items()})
        for lambda_, expected in case["targets"].items():
            assert_close(corrector(trace, jnp.float32(lambda_)), *expected[name], rtol=2e-5, atol=1e-5)


def random_traces(kind: str, steps: int, batch: int = 30, seed: int = 0) -> Trace:
    """[batch, steps], with many ends; where no episode ended, a state bootstraps from the next one's value."""
    r = np.random.default_rng(seed)
    shape = (batch, steps)
    terminated, truncated = r.random((2, *shape)) < 0.12
    value, bootstrap, reward = r.standard_normal((3, *shape), np.float32)
    ended = terminated | truncated
    if kind == "state":
        bootstrap[:, :-1] = np.where(ended[:, :-1], bootstrap[:, :-1], value[:, 1:])
    prob, other = r.uniform(0.05, 1, (2, *shape)).astype(np.float32)
    discount = np.where(terminated, 0, 0.9).astype(np.float32)
    return Trace(reward, discount, ended, value, bootstrap, np.log(prob / other), prob)


def weighted_sums(trace: Trace, weight) -> np.ndarray:
    """For each step s the sum over t, to the end of its episode, of discounts, weight(s, t) and errors: [time]."""
    error, sums = trace.reward + trace.discount * trace.bootstrap - trace.value, []
    for s in range(len(error)):
        sums.append(0.0)
        for t in range(s, len(error)):
            sums[s] += prod(trace.discount[s:t]) * weight(s, t) * error[t]
            if trace.ended[t]:
                break
    return np.array(sums)


def mixtures_of_n_steps(trace: Trace, lambda_: float) -> np.ndarray:
    """The lambda-return of each step as Sutton 1988 has it, from the n-step returns, the longest with the rest."""
    returns = []
    for s in range(len(trace.reward)):
        end = next((t for t in range(s, len(trace.reward)) if trace.ended[t]), len(trace.reward) - 1)
        total, rewards = 0.0, 0.0
        for t in range(s, end + 1):
            rewards += prod(trace.discount[s:t]) * trace.reward[t]
            share = lambda_ ** (t - s) * (1 - lambda_ if t < end else 1.0)
            total += share * (rewards + prod(trace.discount[s : t + 1]) * trace.bootstrap[t])
        returns.append(total)
    return np.array(returns)


class Caps(NamedTuple):
    rho_bar: float = 1.0  # of V-trace, and the limit of truncated importance sampling
    c_bar: float = 1.0
    pg_rho_bar: float = 1.0


def by_sums(kind: str, name: str, caps: Caps, trace: Trace, lambda_: float) -> tuple[np.ndarray, np.ndarray]:
    """(target, advantage) of one trace as the papers write them."""
    rho, first = np.exp(trace.log_ratio), {"state": 0, "action": 1}[kind]
    power = lambda s, t: lambda_ ** (t - s)
    weights = {
        "tis": lambda s, t: power(s, t) * min(caps.rho_bar, prod(rho[s + first : t + 1])),
        "vtrace": lambda s, t: power(s, t) * prod(np.minimum(caps.c_bar, rho[s:t])) * min(caps.rho_bar, rho[t]),
        "retrace": lambda s, t: power(s, t) * prod(np.minimum(caps.c_bar, rho[s + 1 : t + 1])),
        "tree-backup": lambda s, t: power(s, t) * prod(trace.prob[s + 1 : t + 1]),
    }
    if name == "none":
        target = mixtures_of_n_steps(trace, lambda_)
    else:
        target = trace.value + weighted_sums(trace, weights[name])
    if name != "vtrace":
        return target, target - trace.value
    goes_on = ~trace.ended[:-1]
    following = trace.bootstrap.copy()
    following[:-1] += np.where(goes_on, lambda_ * (target[1:] - trace.bootstrap[:-1]), 0)
    return target, np.minimum(caps.pg_rho_bar, rho) * (trace.reward + trace.discount * following - trace.value)


OTHER_CAPS = Caps(1.5, 0.9, 1.2)
OTHERWISE = {
    "state": {"none": lambda_return, "tis": tis(1.5), "vtrace": vtrace(1.5, 0.9, 1.2)},
    "action": {
        "none": lambda_return,
        "tis": tis(1.5, ratio_from=1),
        "retrace": retrace(0.9),
        "tree-backup": tree_backup(),
    },
}


@pytest.mark.parametrize(
    ("steps", "correctors", "caps"), [(1, TABLES, Caps()), (7, TABLES, Caps()), (7, OTHERWISE, OTHER_CAPS)]
)
@TABLE
def test_a_corrector_is_the_sum_of_its_paper(kind, name, steps, correctors, caps):
    traces = random_traces(kind, steps)
    corrector = mapped(correctors[kind][name])
    wide = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(np.float64), traces)
    for lambda_ in (0.0, 0.7, 1.0):
        rows = [by_sums(kind, name, caps, Trace(*row), lambda_) for row in zip(*wide, strict=True)]
        target, advantage = map(np.stack, zip(*rows, strict=True))
        assert_close(corrector(traces, jnp.float32(lambda_)), target, advantage, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
@TABLE
def test_data_of_the_own_policy_is_left_alone(kind, name, lambda_):
    """Then every corrector is the lambda-return. With action values that is so for each sample if the policy is
    deterministic, since only then is what bootstraps the value of the action taken next."""
    traces = random_traces("state", 7)
    own = traces._replace(log_ratio=np.zeros_like(traces.value), prob=np.ones_like(traces.value))
    expected = mapped(lambda_return)(own, jnp.float32(lambda_))
    corrector = mapped(TABLES[kind][name])
    assert_close(corrector(own, jnp.float32(lambda_)), *expected, rtol=1e-5, atol=1e-5)
    if name != "none" and lambda_ > 0:  # and data of another policy is not
        assert abs(corrector(traces, jnp.float32(lambda_)).target - expected.target).max() > 0.1


@pytest.mark.parametrize("name", ["tis", "retrace"])
def test_action_values_of_a_stochastic_own_policy_keep_everything(name):
    """Ratios of one keep the whole trace: the on-policy Q(lambda) of Harutyunyan et al. 2016."""
    traces = random_traces("action", 7)
    own = traces._replace(log_ratio=np.zeros_like(traces.value))
    got = mapped(ACTION_VALUES[name])(own, jnp.float32(0.7))
    for i, row in enumerate(zip(*own, strict=True)):
        kept = weighted_sums(Trace(*row), lambda s, t: 0.7 ** (t - s))
        np.testing.assert_allclose(got.advantage[i], kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("terminated", [False, True])
@TABLE
def test_an_end_parts_a_trace_in_two(kind, name, terminated):
    whole = random_traces(kind, 8, seed=1)
    whole.ended[:] = False
    whole.ended[:, 4] = True
    whole.discount[:, 4] = 0.0 if terminated else 0.9
    corrector = mapped(OTHERWISE[kind][name])
    halves = [corrector(Trace(*(x[:, cut] for x in whole)), jnp.float32(0.7)) for cut in (np.s_[:5], np.s_[5:])]
    expected = (np.concatenate(x, 1) for x in zip(*halves, strict=True))
    got = corrector(whole, jnp.float32(0.7))
    assert_close(got, *expected, rtol=1e-5, atol=1e-6)
    # a truncated step is bootstrapped from, a terminated one is not
    moved = corrector(whole._replace(bootstrap=whole.bootstrap + whole.ended), jnp.float32(0.7))
    changed = np.asarray(moved.target != got.target).any(0).tolist()
    assert changed == ([False] * 8 if terminated else [True] * 5 + [False] * 3)


@TABLE
def test_no_gradient_flows_through_a_target(kind, name):
    trace = jax.tree.map(lambda x: jnp.asarray(x[0]), random_traces(kind, 5))
    numbers = trace._replace(ended=None)

    def total(numbers):
        got = TABLES[kind][name](numbers._replace(ended=trace.ended), 0.7)
        return (got.target + got.advantage).sum()

    for slope in jax.tree.leaves(jax.jit(jax.grad(total))(numbers)):
        np.testing.assert_array_equal(slope, 0)


@TABLE
def test_extreme_ratios_do_no_harm(kind, name):
    """An action the own policy never takes ends the traces that would go on through it; a huge ratio is truncated."""
    traces = random_traces(kind, 6, seed=2)
    traces.ended[:] = False
    traces.log_ratio[:, 2], traces.prob[:, 2] = -inf, 0.0
    traces.log_ratio[:, 4] = 200.0  # its exponential overflows
    corrector = mapped(TABLES[kind][name])
    got = corrector(traces, jnp.float32(1.0))
    assert np.isfinite(got.target).all()
    assert np.isfinite(got.advantage).all()
    later = traces._replace(reward=traces.reward + np.float32([0, 0, 0, 1, 1, 1]))
    moved = np.asarray(corrector(later, jnp.float32(1.0)).target != got.target).any(0)
    assert moved[: 3 if kind == "state" else 2].any() == (name == "none")
    assert moved[3:].all()


# A small MDP, small enough to enumerate: two states and a terminal one, two actions, a third of the steps truncated.
GAMMA, STEPS, FIRST = 0.9, 3, 0
GOES_TO = np.array([[[0.7, 0.1], [0.2, 0.6]], [[0.3, 0.5], [0.1, 0.9]]])  # [state, action, next]; the rest terminates
REWARD = np.array([[1.0, -1.0], [0.0, 2.0]])
OWN = np.array([[0.9, 0.1], [0.2, 0.8]])  # [state, action]
BIASED = np.array([[0.3, 0.7], [0.7, 0.3]])
BEHAVIOURS = {"own": OWN, "biased": BIASED}


class Experience(NamedTuple):
    """Every trace of `STEPS` steps a behaviour may produce from either state, [traces, time], and its probability."""

    state: np.ndarray
    action: np.ndarray
    next_state: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    log_ratio: np.ndarray
    prob: np.ndarray
    chance: np.ndarray  # [traces]

    def trace(self, value, bootstrap) -> Trace:
        reward = REWARD[self.state, self.action].astype(np.float32)
        discount = np.where(self.terminated, 0, GAMMA).astype(np.float32)
        return Trace(reward, discount, self.terminated | self.truncated, value, bootstrap, self.log_ratio, self.prob)


def experience(behaviour: np.ndarray) -> Experience:
    rows = []
    ways = [(None, False), *product((0, 1), (False, True))]  # (next state or None, truncated)
    for start, *choices in product((0, 1), *[list(product((0, 1), ways))] * STEPS):
        state, chance, row = start, 0.5, []
        for action, (after, cut) in choices:
            moves = GOES_TO[state, action]
            chance *= behaviour[state, action]
            chance *= 1 - moves.sum() if after is None else moves[after] * (1 / 3 if cut else 2 / 3)
            ratio = OWN[state, action] / behaviour[state, action]
            row.append((state, action, after or 0, after is None, cut, np.log(ratio), OWN[state, action]))
            state = FIRST if after is None or cut else after
        rows.append((*zip(*row, strict=True), chance))
    *columns, chance = (np.array(x) for x in zip(*rows, strict=True))
    assert abs(chance.sum() - 1) < 1e-9
    found = (x.astype({"f": np.float32, "i": np.int32, "b": np.bool_}[x.dtype.kind]) for x in (*columns, chance))
    return Experience(*found)


EXPERIENCE = {name: experience(behaviour) for name, behaviour in BEHAVIOURS.items()}


def exact(policy: np.ndarray) -> dict[str, np.ndarray]:
    """The values of a policy, by linear algebra."""
    moves = np.einsum("sa,san->sn", policy, GOES_TO)
    state = np.linalg.solve(np.eye(2) - GAMMA * moves, (policy * REWARD).sum(-1))
    return {"state": state, "action": REWARD + GAMMA * GOES_TO @ state}


def learned(kind: str, behaviour: str, corrector: Corrector, lambda_: float) -> np.ndarray:
    """The values a tabular learner settles on: expected updates, so that no noise hides a bias."""
    seen = EXPERIENCE[behaviour]
    where = (seen.state,) if kind == "state" else (seen.state, seen.action)
    chance = np.broadcast_to(seen.chance[:, None], seen.state.shape)
    shape = (2,) if kind == "state" else (2, 2)
    visits = jnp.zeros(shape).at[where].add(chance)

    def sweep(table, _):
        next_value = table if kind == "state" else (OWN.astype(np.float32) * table).sum(-1)
        value = table[where]
        target = jax.vmap(corrector, (0, None))(seen.trace(value, next_value[seen.next_state]), lambda_).target
        return table + jnp.zeros(shape).at[where].add(chance * (target - value)) / visits, None

    return np.asarray(jax.jit(lambda: jax.lax.scan(sweep, jnp.zeros(shape), None, 200)[0])())


ENOUGH = 30.0  # no product of ratios exceeds it
RIGHT = {
    "state": {"tis": tis(ENOUGH), "vtrace": vtrace(rho_bar=ENOUGH)},
    "action": {
        "tis": tis(ENOUGH, ratio_from=1),
        "tis, truncated": tis(ratio_from=1),
        "retrace": retrace(),
        "tree-backup": tree_backup(),
    },
}


@pytest.mark.parametrize("lambda_", [0.5, 1.0])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in RIGHT.items() for name in table])
def test_corrected_learners_learn_the_values_of_their_own_policy(kind, name, lambda_):
    found = learned(kind, "biased", RIGHT[kind][name], lambda_)
    np.testing.assert_allclose(found, exact(OWN)[kind], rtol=1e-4)


@pytest.mark.parametrize("kind", TABLES)
def test_the_uncorrected_learner_does_not(kind):
    right, wrong = exact(OWN)[kind], exact(BIASED)[kind]
    found = learned(kind, "biased", lambda_return, 1.0)
    assert abs(found - right).min() > 1
    if kind == "state":  # what it learns is the value of the policy that acted
        np.testing.assert_allclose(found, wrong, rtol=1e-4)


@TABLE
def test_every_learner_learns_its_own_values_from_its_own_data(kind, name):
    np.testing.assert_allclose(learned(kind, "own", TABLES[kind][name], 0.9), exact(OWN)[kind], rtol=1e-4)


def test_a_truncated_v_trace_learns_the_policy_of_its_equation():
    """Espeholt et al. 2018, equation 3."""
    between = np.minimum(BIASED, OWN)
    between /= between.sum(-1, keepdims=True)
    found = learned("state", "biased", vtrace(), 0.9)
    np.testing.assert_allclose(found, exact(between)["state"], rtol=1e-4)
    assert abs(found - exact(OWN)["state"]).min() > 0.1


@pytest.mark.parametrize(("limit", "error"), [(ENOUGH, 0.0), (None, 1.0)])
def test_a_weighted_n_step_return_learns_the_values_of_the_own_policy(limit, error):
    """What `corrected` does to DQN, with the own policy's mean in the place of the maximum."""
    seen = EXPERIENCE["biased"]
    ended = seen.terminated | seen.truncated
    inside = (np.cumsum(ended, -1) - ended) == 0
    weight = np.ones_like(seen.chance)
    if limit is not None:
        weight = jax.jit(jax.vmap(truncated(limit)))(np.where(inside, seen.log_ratio, np.float32(0))[:, 1:])
    reward = REWARD[seen.state, seen.action].astype(np.float32)
    ret = jax.jit(jax.vmap(n_step, (0, 0, 0, None)))(reward, seen.terminated, seen.truncated, jnp.float32(GAMMA))
    last = np.take_along_axis(seen.next_state, np.asarray(ret.last)[:, None], -1)[:, 0]
    where = (seen.state[:, 0], seen.action[:, 0])
    visits = jnp.zeros((2, 2)).at[where].add(seen.chance)

    def sweep(q, _):
        bootstrap = (OWN.astype(np.float32) * q).sum(-1)[last]
        change = weight * seen.chance * (ret.reward + ret.discount * bootstrap - q[where])
        return q + jnp.zeros((2, 2)).at[where].add(change) / visits, None

    q = jax.jit(lambda: jax.lax.scan(sweep, jnp.zeros((2, 2)), None, 200)[0])()
    found = abs(np.asarray(q) - exact(OWN)["action"])
    assert found.min() >= error
    assert error or found.max() < 1e-3
