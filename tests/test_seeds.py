"""The same seed gives the same run, another seed another one, and many seeds are the runs of each."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from small import bits

import frugalrl
from frugalrl.training import Result

STEPS = 2_000
HYPER = {"learning_starts": 200, "batch_size": 128, "hidden": (64, 64)}


def train(**options: Any) -> Result:
    return frugalrl.train("dqn", "CartPole-v1", runtime="compiled", steps=STEPS, hyper=HYPER, **options)


@cache
def alone(seed: int) -> Result:
    return train(seed=seed)


@cache
def together() -> Result:
    return train(seeds=3)


def rows(result: Result, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of one seed without the clock, as text: what was not a number stays comparable."""
    return [{k: repr(v) for k, v in row.items() if k != "wall_seconds"} for row in result.rows if row["seed"] == seed]


def test_the_same_seed_gives_the_same_rows_and_weights():
    again = train(seed=0)
    assert rows(again) == rows(alone(0))
    assert bits(again.actor.weights) == bits(alone(0).actor.weights)


def test_other_seeds_differ_in_every_weight_and_in_their_episodes():
    for a, b in ((0, 1), (1, 2)):
        for one, other in zip(together().actor.weights[a], together().actor.weights[b], strict=True):
            assert (one.w != other.w).all()
            assert (one.b != other.b).mean() > 0.5  # a unit that was never active has the bias it began with
        assert [r["train_return"] for r in rows(together(), a)] != [r["train_return"] for r in rows(together(), b)]


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_among_three_is_that_seed_alone(seed):
    """Episodes and weights bit for bit; `loss` and `q` are means that XLA may add up in another order."""
    many, one = rows(together(), seed), rows(alone(seed), seed)
    assert len(many) == len(one) == 10
    for a, b in zip(many, one, strict=True):
        for mean in ("loss", "q"):
            assert float(a.pop(mean)) == pytest.approx(float(b.pop(mean)), rel=1e-5)
        assert a == b
    assert bits(together().actor.weights[seed]) == bits(alone(seed).actor.weights[0])


def test_evaluation_is_on_the_same_episodes_for_every_seed():
    returns = together().returns
    assert returns["per_seed"] == [float(rows(together(), seed)[-1]["episode_return"]) for seed in range(3)]
    assert np.isfinite([returns["iqm"], returns["low"], returns["high"]]).all()


def test_a_spent_budget_without_a_folder_gives_what_was_reached():
    short = train(budget=1e-9)
    assert (short.folder, short.receipt["finished"], short.receipt["episodes_per_seed"]) == (None, False, 20)
    assert short.predict(np.zeros(4, np.float32)) in (0, 1)
    assert len(short.returns["per_seed"]) == 1


def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(tmp_path):
    stopped = train(seed=0, out=tmp_path, budget=1e-9)
    assert 0 < stopped.receipt["steps"] < STEPS
    assert not stopped.receipt["finished"]
    resumed = frugalrl.resume(tmp_path)
    assert resumed is not None
    assert rows(resumed) == rows(alone(0))
    assert bits(resumed.actor.weights) == bits(alone(0).actor.weights)
