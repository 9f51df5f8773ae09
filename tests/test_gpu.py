"""What only a machine with an accelerator can show; `make gpu` runs these there."""

from __future__ import annotations

import jax
import pytest

from frugalrl import training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="JAX sees no accelerator"),
]


@pytest.mark.parametrize("mode", ["fp32", "int8", "half+int8"])
def test_a_learner_on_the_accelerator_learns_from_actors_on_the_cpu(mode):
    """The arrangement that ActorQ and AcceRL report on: learning is cheap, so that acting is most of the time."""
    done = training.train("impala", "CartPole-v1", steps=60_000, runtime="actors", actors=mode)
    assert done.receipt["hardware"]["accelerator"]
    assert done.receipt["actors"]["mode"] == mode
    assert done.receipt["actors"]["engine"] != "jax"  # theirs have no accelerator
    assert done.receipt["returns"]["per_seed"][0] > 100  # random play ends at about 22


def test_seeds_on_the_accelerator_are_one_program():
    done = training.train("ppo", "CartPole-v1", steps=100_000, seeds=8, runtime="compiled")
    assert done.receipt["hardware"]["accelerator"]
    assert min(done.receipt["returns"]["per_seed"]) > 100
