"""The laws that every agent keeps under every lever: one table of agents by levers, one test a law."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import (
    HYPER,
    MODULES,
    OBS,
    bits,
    random_batch,
    random_state,
    small,
    small_dqn,
    small_family,
    small_run,
    start,
)

from frugalrl import checkpoint, rng
from frugalrl.distributions import Categorical, draw
from frugalrl.levers.compress import quantise
from frugalrl.levers.compress.engines import engine
from frugalrl.levers.compress.simulate import compressed
from frugalrl.levers.correct import corrected, none, truncated
from frugalrl.memory import by_priority, evenly
from frugalrl.networks import NoisyLinear
from frugalrl.runtime import actor, compiled, link
from frugalrl.runtime.actors import arrays_of
from frugalrl.types import Agent, Batch, Linear, Policy, update

KEY = jax.random.key(0)
ITERATIONS, MEMBERS = 20, 4


class Learner(NamedTuple):
    """An agent and the number of consecutive steps it learns from."""

    agent: Agent
    window: int
    hyper: Any = HYPER
    continuous: bool = False
    choice: Any = evenly

    def run(self) -> compiled.Run:
        return small_run(self.agent, self.window, continuous=self.continuous, choice=self.choice)

    def batch(self) -> Batch:
        return random_batch(window=self.window, continuous=self.continuous)

    def state(self) -> Any:
        return random_state(self.agent, hyper=self.hyper)


def other(name: str, window: int = 1, continuous: bool = True) -> Learner:
    return Learner(small(name, continuous), window, MODULES[name].Hyper(learning_rate=1e-2), continuous)


class Lever(NamedTuple):
    pull: Callable[[Agent], Agent]
    identity: bool = False  # gives the same program
    neutral: bool = False  # gives the same numbers on data of the agent's own policy


AGENTS = {"dqn": Learner(small_dqn(), 1), "dqn, 3 steps": Learner(small_dqn(), 3)}
AGENTS |= {"rainbow": Learner(small_family("rainbow"), 3, choice=by_priority), "miqn": Learner(small_family("miqn"), 1)}
AGENTS |= {"sac": other("sac"), "sac, discrete": other("sac", continuous=False)}
AGENTS |= {"td3, 3 steps": other("td3", 3), "d4pg, 3 steps": other("d4pg", 3)}
LEVERS = {
    "none": Lever(lambda agent: agent, identity=True, neutral=True),
    "fp32 actors": Lever(lambda agent: compressed(agent, quantise.fp32()), identity=True, neutral=True),
    "int8 actors": Lever(lambda agent: compressed(agent, quantise.int8())),
    "no correction": Lever(lambda agent: corrected(agent, none()), neutral=True),
    "truncated ratios": Lever(lambda agent: corrected(agent, truncated()), neutral=True),
    "both": Lever(lambda agent: compressed(corrected(agent, truncated()), quantise.int8())),
}
CELLS = [(name, lever) for name in AGENTS for lever in LEVERS]
# Cells that every test session looks at: all of DQN's, and one in which the others have most to lose.
QUICK = {cell for cell in CELLS if cell[0].startswith("dqn")}
QUICK |= {("rainbow", "none"), ("rainbow", "both"), ("miqn", "truncated ratios")}
QUICK |= {("sac", "none"), ("sac, discrete", "fp32 actors"), ("td3, 3 steps", "truncated ratios")}


def table(cells: list[tuple[str, str]], quick: set[tuple[str, str]] = QUICK) -> pytest.MarkDecorator:
    marked = [cell if cell in quick else pytest.param(*cell, marks=pytest.mark.long) for cell in cells]
    return pytest.mark.parametrize(("name", "lever"), marked)


TABLE = table(CELLS)
IDENTITIES = table([cell for cell in CELLS if LEVERS[cell[1]].identity])
NEUTRALS = table([cell for cell in CELLS if LEVERS[cell[1]].neutral])
# Cells whose runs are compiled in every test session; an identity lever's run is the run of "none" as a program.
USUAL = {("dqn", "none"), ("dqn, 3 steps", "both"), ("sac", "none")}
RUNS = table(CELLS, USUAL)


def pulled(name: str, lever: str) -> Learner:
    learner = AGENTS[name]
    return learner._replace(agent=LEVERS[lever].pull(learner.agent))


class Population(NamedTuple):
    """A run, four warmed-up members of it [members, ...], and its programs, compiled once for all tests."""

    run: compiled.Run
    carry: Any
    programs: compiled.Programs


@cache
def population(name: str, lever: str) -> Population:
    learner = pulled(name, lever)
    run = learner.run()
    carry = start(run, MEMBERS, learner.hyper)
    return Population(run, carry, compiled.Programs(run, carry))


def on_policy(learner: Learner, state: Any) -> Batch:
    """A batch whose actions the agent itself chose."""
    agent, batch = learner.agent, learner.batch()
    policy = agent.policy(state)
    log_prob = jax.vmap(jax.vmap(lambda obs, action: agent.dist(policy, obs, KEY).log_prob(action)))
    return batch._replace(data=batch.data._replace(log_prob=log_prob(batch.data.obs, batch.data.action)))


@IDENTITIES
def test_an_identity_lever_gives_the_same_program(name, lever):
    before, after = AGENTS[name], pulled(name, lever)
    state, batch = before.state(), before.batch()
    asked = {
        "init": (KEY, before.hyper),
        "policy": (state,),
        "grad": (state, batch, KEY),
        "apply": (state, state.params),
    }
    for part, arguments in asked.items():
        programs = [str(jax.make_jaxpr(getattr(learner.agent, part))(*arguments)) for learner in (before, after)]
        assert programs[0] == programs[1], part
    runs = [learner.run() for learner in (before, after)]
    carry = jax.eval_shape(runs[0].init, KEY, before.hyper)
    assert str(jax.make_jaxpr(runs[0].advance)(carry, 3)) == str(jax.make_jaxpr(runs[1].advance)(carry, 3))


@NEUTRALS
def test_a_neutral_lever_gives_the_same_numbers(name, lever):
    before, after = AGENTS[name], pulled(name, lever)
    state = before.state()
    batch = on_policy(before, state)
    expected, got = (update(learner.agent, state, batch, KEY) for learner in (before, after))
    for a, b in zip(numbers(got), numbers(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert bits(before.agent.policy(state)) == bits(after.agent.policy(state))


@TABLE
def test_a_lever_leaves_what_is_not_its_own(name, lever):
    before, after = AGENTS[name].agent, pulled(name, lever).agent
    own = {"int8 actors": {"policy"}, "fp32 actors": {"policy"}, "both": {"policy", "grad"}}.get(lever, {"grad"})
    for part in set(Agent._fields) - (own if lever != "none" else set()):
        assert getattr(before, part) is getattr(after, part), part


@TABLE
def test_a_state_keeps_its_dtypes_and_structure(name, lever):
    learner = pulled(name, lever)
    before = jax.eval_shape(learner.agent.init, KEY, learner.hyper)
    after, _ = jax.eval_shape(lambda state, batch: update(learner.agent, state, batch, KEY), before, learner.batch())
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


def advanced(
    programs: compiled.Programs, carry: Any, width: int, segments: list[int], seconds: float | None = None
) -> tuple[Any, dict]:
    """The carry and metrics after `segments`, with `width` members in a program at a time."""
    seeds = carry.iteration.shape[0]
    for chunk in {s.stop - s.start for s in compiled.chunks(seeds, width)} - {width for width, _ in programs.compiled}:
        programs.prepare(chunk)
    carry = jax.tree.map(jnp.copy, carry)
    for tick in compiled.train(programs, compiled.Way(width, 1), carry, segments, None, seconds):
        last = tick.carry(), tick.metrics
    return last


def numbers(tree: Any) -> list[np.ndarray]:
    """The leaves that are numbers, not keys."""
    return [np.asarray(x) for x in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]


@RUNS
def test_a_member_of_a_population_is_the_run_alone(name, lever):
    """Over 20 iterations, to round-off: XLA adds up a batch in another order where a program holds one member only.

    One iteration shows it closely. After more, Adam has magnified what there is: its first steps divide a gradient by
    its own size, so where that is all but zero its round-off becomes a share of the learning rate (d4pg: 2e-6 after one
    iteration, 3e-5 after two, 5e-5 to 2e-4 after twenty, in a few weights of 3,264). A member that saw another's data
    would be off by whole steps.
    """
    _, carry, programs = population(name, lever)
    for iterations, atol in ((1, 1e-5), (ITERATIONS, 0.05 * HYPER.learning_rate)):
        together = advanced(programs, carry, MEMBERS, [iterations])
        alone = advanced(programs, carry, 1, [iterations])
        assert alone[0].state.version.tolist() == [iterations] * MEMBERS
        for a, b in zip(numbers(together), numbers(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("width", [MEMBERS, 2])
def test_segments_of_other_lengths_change_nothing(width):
    """Not one bit of learner, memory or environments; and where a segment is cut, not one of its means either."""
    _, carry, programs = population("dqn, 3 steps", "both")
    expected = advanced(programs, carry, width, [7, ITERATIONS])
    for segments in ([1, 8, ITERATIONS], [ITERATIONS]):
        found = advanced(programs, carry, width, segments)[0]
        assert bits(found._replace(episodes=0)) == bits(expected[0]._replace(episodes=0))
    assert bits(advanced(programs, carry, width, [7, ITERATIONS], 1e-9)) == bits(expected)
    assert bits(advanced(programs, carry, width, [ITERATIONS])[1]) != bits(expected[1])


@RUNS
def test_resumed_equals_never_stopped(name, lever, tmp_path):
    run, carry, programs = population(name, lever)
    carry = compiled.take(carry, slice(1))
    half = advanced(programs, carry, 1, [ITERATIONS // 2])[0]
    expected = advanced(programs, carry, 1, [ITERATIONS // 2, ITERATIONS])
    checkpoint.save(tmp_path, 40, half)
    begin = jax.vmap(lambda seed: run.init(rng.key(seed), AGENTS[name].hyper))
    restored = checkpoint.restore(tmp_path, 40, jax.eval_shape(begin, jnp.arange(1)))
    assert bits(restored) == bits(half)
    assert bits(advanced(programs, restored, 1, [ITERATIONS])) == bits(expected)


@pytest.mark.parametrize("name", AGENTS)
def test_two_seeds_differ_in_every_weight(name):
    learner = AGENTS[name]
    params = jax.vmap(lambda seed: learner.agent.init(rng.key(seed), learner.hyper).params)(jnp.arange(2))
    kinds = Linear | NoisyLinear
    layers = [x for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, kinds)) if isinstance(x, kinds)]
    assert len(layers) == {"dqn": 2, "dqn, 3 steps": 2, "rainbow": 2, "miqn": 3}.get(name, 4)
    for layer in layers:
        assert (layer.w[0] != layer.w[1]).all()
        assert (layer.b == 0).all()


MODES = {mode: quantise.COMPRESSORS[mode] for mode in ("fp32", "bf16", "int8")}


class Ends(NamedTuple):
    """What the learner's program computes for some observations, and what reaches the other end of the wire."""

    policy: Policy  # of the simulated wire
    outputs: np.ndarray  # of that policy
    obs: np.ndarray
    weights: tuple  # out of the mailbox
    knobs: dict
    version: int

    def run(self, name: str, mode: str) -> np.ndarray:
        """The outputs of an engine that was loaded from the mailbox."""
        session = engine(name).build(small_dqn().network.layers, OBS, len(self.obs), mode)
        session.load(self.weights)
        return session.run(self.obs)


def ends(mode: str, folder: Path) -> Ends:
    agent, compressor = small_dqn(), MODES[mode]()
    state = random_state(agent)._replace(version=jnp.int32(17))
    policy = compressed(agent, compressor).policy(state)
    obs = np.random.default_rng(0).standard_normal((512, 4), np.float32)
    outputs = jax.jit(jax.vmap(lambda x: agent.dist(policy, x, KEY).values))(obs)

    packet = jax.device_get(jax.jit(compressor.encode)(agent.policy(state)))
    arrays = arrays_of(packet, np.asarray(state.version))
    link.mailbox(folder / "mailbox", link.fields(arrays)).put(arrays)
    _, received = link.mailbox(folder / "mailbox", link.fields(arrays)).get()
    kinds = tuple(type(layer).__name__ for layer in packet.weights)
    return Ends(policy, np.asarray(outputs), obs, *actor.unflatten(received, kinds, ("epsilon",))[:3])


@pytest.mark.parametrize("mode", MODES)
def test_the_simulated_wire_acts_as_the_real_one(mode, tmp_path):
    head, sent = small_dqn().head, ends(mode, tmp_path)
    assert sent.version == 17
    assert bits(sent.knobs) == bits(sent.policy.knobs)
    outputs = sent.run("numpy", mode)
    np.testing.assert_allclose(outputs, sent.outputs, rtol=1e-4, atol=1e-5)
    real, simulated = head(outputs, sent.knobs), head(sent.outputs, sent.policy.knobs)
    noise = draw(real, np.random.default_rng(1))
    action = real.sample(noise)
    np.testing.assert_array_equal(action, simulated.sample(noise))
    np.testing.assert_array_equal(real.mode(), simulated.mode())
    np.testing.assert_allclose(real.log_prob(action), simulated.log_prob(action), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_litert_acts_nearly_as_the_simulated_wire(mode, tmp_path):
    """It rounds activations too, so it may differ: by less than 0.01 nats, the outputs taken as logits."""
    sent = ends(mode, tmp_path)
    outputs = sent.run("litert", mode)
    assert Categorical(sent.outputs).kl(Categorical(outputs)).max() < 1e-2
    assert (sent.outputs.argmax(-1) == outputs.argmax(-1)).mean() > 0.98


def test_compressed_is_not_the_full_policy(tmp_path):
    """Else the two tests above would show nothing."""
    full, *others = (ends(mode, tmp_path / mode) for mode in MODES if not (tmp_path / mode).mkdir())
    assert all(abs(full.outputs - small.outputs).max() > 1e-3 for small in others)
