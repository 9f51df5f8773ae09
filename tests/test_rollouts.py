"""A memory of rollouts deals each step once a pass, with what was worked out for it, and replays by priority."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from frugalrl.memory import rollouts
from frugalrl.types import Batch, Memory, Transition

LANES, TIME = 3, 4
EXAMPLE = Transition(
    obs=jnp.zeros(2),
    action=jnp.int32(0),
    reward=jnp.float32(0),
    terminated=jnp.bool_(False),
    truncated=jnp.bool_(False),
    next_obs=jnp.zeros(2),
    log_prob=jnp.float32(0),
    version=jnp.int32(0),
)


@cache
def rollout(number: int) -> Transition:
    """Rollout `number` of all lanes, [time, lanes, ...]; its actions number all steps there are."""
    first = number * LANES * TIME
    action = first + np.arange(LANES * TIME, dtype=np.int32).reshape(LANES, TIME).T
    obs = np.stack([action, -action], -1).astype(np.float32)
    flags = action % 5 == 0
    number_ = np.full_like(action, number)
    made = Transition(obs, action, obs[..., 0] / 2, flags, ~flags, obs + 1, obs[..., 1] / 4, number_)
    return jax.tree.map(jnp.asarray, made)


def prepare(lane: Transition) -> dict[str, jax.Array]:
    """Twice the action, and how far the step is from the end of its rollout."""
    steps = jnp.arange(lane.action.shape[0], dtype=jnp.int32)
    return {"twice": lane.obs[:, 0] * 2, "left": lane.action.shape[0] - 1 - steps}


def filled(memory: Memory, count: int, streams: int = 1) -> Any:
    kept = memory.init()
    for number in range(count):
        kept = memory.add(kept, rollout(number), number % streams)
    return kept


@partial(jax.jit, static_argnums=(0, 3))
def all_of_them(memory: Memory, kept: Any, key: Any, updates: int) -> tuple[Any, list[Batch]]:
    kept, draw = memory.deal(kept, key, prepare)
    return kept, [draw(kept, key, i) for i in range(updates)]


def dealt(memory: Memory, kept: Any, updates: int, seed: int = 0) -> tuple[Any, list[Batch]]:
    kept, batches = all_of_them(memory, kept, jax.random.key(seed), updates)
    return kept, jax.device_get(batches)


def actions(batches: list[Batch]) -> list[int]:
    return np.concatenate([batch.data.action.ravel() for batch in batches]).tolist()


def is_itself(batch: Batch) -> None:
    """All fields of a sample are of one step, and so is what was worked out for it."""
    data, action = batch.data, batch.data.action
    for lane in range(action.shape[0]):
        whole = jax.device_get(rollout(int(data.version[lane, 0])))
        place = [np.argwhere(whole.action == a)[0] for a in action[lane]]
        expected = jax.tree.map(lambda x, place=place: np.stack([x[tuple(p)] for p in place]), whole)
        jax.tree.map(lambda a, b, lane=lane: np.testing.assert_array_equal(a[lane], b), data, expected)
    np.testing.assert_array_equal(batch.extra["twice"], action * 2)
    np.testing.assert_array_equal(batch.extra["left"], TIME - 1 - action % TIME)


def test_each_pass_deals_every_step_once_and_in_another_order():
    memory = rollouts(EXAMPLE, lanes=LANES, unroll=TIME, epochs=2, minibatches=3)
    kept, batches = dealt(memory, filled(memory, 5), 6)
    assert all(batch.data.action.shape == (4, 1) for batch in batches)
    for batch in batches:
        is_itself(batch)
    passes = [actions(batches[i : i + 3]) for i in (0, 3)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(48, 60))  # the newest rollout only
    assert passes[0] != passes[1]
    assert actions(dealt(memory, kept, 6, seed=1)[1]) != actions(batches)
    assert actions(dealt(memory, kept, 6)[1]) == actions(batches)


def test_whole_rollouts_stay_whole():
    memory = rollouts(EXAMPLE, lanes=LANES, unroll=TIME, minibatches=3, whole=True)
    _, batches = dealt(memory, filled(memory, 2), 3)
    for batch in batches:
        is_itself(batch)
        assert batch.data.action.shape == (1, TIME)
        assert np.diff(batch.data.action[0]).tolist() == [1] * (TIME - 1)
    assert sorted(actions(batches)) == list(range(12, 24))


@pytest.mark.parametrize("alone", [True, False])
def test_streams_are_dealt_together_or_each_alone(alone):
    memory = rollouts(EXAMPLE, lanes=LANES, unroll=TIME, streams=2, alone=alone)
    kept = filled(memory, 5, streams=2)
    _, (batch,) = dealt(memory, kept, 1)
    is_itself(batch)
    assert sorted(actions([batch])) == list(range(36 if not alone else 48, 60))


def test_replayed_rollouts_stand_beside_the_new_ones():
    memory = rollouts(EXAMPLE, lanes=LANES, unroll=TIME, capacity=4 * LANES, beside=1)
    kept = filled(memory, 6)
    seen, lanes = set(), set()
    for seed in range(30):
        _, (batch,) = dealt(memory, kept, 1, seed)
        is_itself(batch)
        found = batch.data.version.ravel()
        assert (found == 5).sum() >= LANES * TIME
        assert len(found) == 2 * LANES * TIME
        seen |= set(found.tolist())
        lanes |= set((batch.data.action.ravel()[found < 5] // TIME % LANES).tolist())
    assert seen == {2, 3, 4, 5}  # the last four are kept
    assert lanes == set(range(LANES))


def test_replay_passes_follow_the_new_rollouts():
    memory = rollouts(EXAMPLE, lanes=LANES, unroll=TIME, capacity=8 * LANES, epochs=1, passes=2, minibatches=2)
    _, batches = dealt(memory, filled(memory, 8), 6)
    for batch in batches:
        is_itself(batch)
    assert sorted(actions(batches[:2])) == list(range(84, 96))
    for i in (2, 4):  # whole rollouts of a lane, in steps
        replayed = np.unique(actions(batches[i : i + 2]), return_counts=True)
        starts = replayed[0][::TIME]
        np.testing.assert_array_equal(replayed[0], (starts[:, None] + np.arange(TIME)).ravel())
    assert actions(batches[2:4]) != actions(batches[4:6])


def test_replay_is_in_proportion_to_priority():
    """Priorities are worked out when a rollout is dealt; until then a new one is as likely as the likeliest."""

    def priority(lane: Transition, extra: dict) -> jax.Array:
        return 1.0 + lane.version[0].astype(jnp.float32)

    memory = rollouts(EXAMPLE, lanes=LANES, unroll=TIME, capacity=3 * LANES, passes=50, priority=priority)
    kept = memory.init()
    for number in range(3):
        kept, _ = dealt(memory, memory.add(kept, rollout(number)), 1)
    np.testing.assert_array_equal(kept.priority[0], np.repeat([[1.0], [2.0], [3.0]], LANES, 1))
    _, batches = dealt(memory, kept, 51)
    counts = np.bincount(np.concatenate([batch.data.version.ravel() for batch in batches[1:]]), minlength=3)
    # stratified: the spread is smaller than that of independent draws, so this is on the safe side
    assert stats.chisquare(counts / TIME, np.array([1, 2, 3]) / 6 * 50 * LANES).pvalue > 1e-3
    assert memory.add(kept, rollout(3)).priority[0, 0].tolist() == [3.0] * LANES


def test_nothing_is_replayed_that_was_never_there():
    memory = rollouts(EXAMPLE, lanes=LANES, unroll=TIME, capacity=8 * LANES, beside=3)
    for seed in range(5):
        _, (batch,) = dealt(memory, filled(memory, 2), 1, seed)
        is_itself(batch)
        assert set(batch.data.version.ravel().tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("wrong", "hint"), [({"minibatches": 5}, "divides"), ({"beside": 1, "passes": 1, "capacity": 9}, "not both")]
)
def test_a_memory_that_cannot_deal_says_so(wrong, hint):
    with pytest.raises(ValueError, match=hint):
        rollouts(EXAMPLE, lanes=LANES, unroll=TIME, **wrong)
