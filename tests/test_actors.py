"""The actors runtime: processes act while the Learner updates, the ratio is exact, no failure goes unseen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import checkpoints, has_rows, receipt, rows, running, wait_for

from frugalrl import catalog, cli, jobs, ledger, rng, training
from frugalrl.agents.dqn import Hyper, Static, assemble
from frugalrl.distributions import epsilon_greedy
from frugalrl.errors import UsageError
from frugalrl.levers.compress import engines, quantise
from frugalrl.memory import uniform
from frugalrl.networks import weighted
from frugalrl.runtime import actor, actors, compiled, link
from frugalrl.types import Discrete, Transition

FAKE = Path(__file__).parent


class Parts(NamedTuple):
    """All that `actors.train` needs, at its smallest."""

    learner: actors.Learner
    plan: actors.Plan
    spec: actor.Spec
    carry: actors.Carry
    memory: Any

    def train(self, steps: int, **more):
        return actors.train(self.learner, self.plan, self.spec, self.carry, steps=steps, seed=0, **more)


def parts(
    env_id: str = "fake_env:Walk-v0", *, mode="fp32", engine="numpy", hidden=(8,), window=1, hypers=None, **plan
) -> Parts:
    obs, space = catalog.spaces(env_id)
    assert isinstance(space, Discrete)
    agent = assemble(Static(hidden=hidden), obs, space)
    layers = agent.network.layers
    assert layers is not None
    numbers = actors.Plan(**{"num_envs": 2, "unroll": 8, "updates": 4, "warmup": 64} | plan)
    zero, flag = jnp.float32(0), jnp.bool_(False)
    first = jnp.zeros(obs.shape)
    example = Transition(first, jnp.int32(0), zero, flag, flag, first, zero, jnp.int32(0))
    memory = uniform(
        example, 4000, 16, lanes=numbers.num_envs, unroll=numbers.unroll, window=window, streams=numbers.actors
    )
    compressor, members = {"fp32": quantise.fp32, "int8": quantise.int8}[mode](), len(hypers or ())
    learner = actors.learner(agent, memory, numbers, compressor, members=members > 0)
    spec = actor.Spec(
        env_id=env_id, env_options=None, num_envs=numbers.num_envs, unroll=numbers.unroll, seed=(0,), folder="",
        slab="", slots=numbers.slots, action=actor.Field((), "int32"), obs=obs, layers=layers,
        engine=engines.module(engine), mode=mode, head=epsilon_greedy, packet=(), knobs=("epsilon",),
        kinds=("Linear", *["QuantLinear" if mode == "int8" else "Linear"] * (len([*weighted(layers, obs.shape)]) - 1)),
    )  # fmt: skip
    if members:
        keys = jnp.stack([rng.key(k) for k in range(members)])
        stacked = jax.tree.map(lambda *x: jnp.array(x, jnp.float32), *hypers)
        carry = jax.jit(learner.init)(keys, stacked)
        return Parts(learner, numbers, spec._replace(members=members), carry, memory)
    carry = jax.jit(learner.init)(rng.key(0), Hyper(total_steps=1000.0))
    return Parts(learner, numbers, spec, carry, memory)


def worker(made: Parts, folder: Path) -> tuple[actor.Worker, link.Mailbox]:
    """An actor's inside, in this process, and the mailbox that it reads."""
    arrays = packet_of(made, made.carry.state)
    spec = made.spec._replace(folder=str(folder), slab="slab", packet=link.fields(arrays))
    box = link.mailbox(folder / "mailbox", spec.packet)
    box.put(arrays)
    return actor.Worker(spec), box


def packet_of(made: Parts, state) -> list[np.ndarray]:
    return actors.arrays_of(*jax.device_get(made.learner.ship(state)))


# what passes between the processes


def test_the_newest_packet_wins(tmp_path):
    spec = (link.Field((3,), "<f4"), link.Field((), "<i4"))
    box, other = link.mailbox(tmp_path / "box", spec), link.mailbox(tmp_path / "box", spec)
    assert other.newest() == 0
    for k in range(1, 6):  # more than there are halves, and nobody reads meanwhile
        box.put([np.full(3, k, np.float32), np.int32(-k)])
    count, arrays = other.get()
    assert count == other.newest() == 5
    np.testing.assert_array_equal(arrays[0], [5, 5, 5])
    assert arrays[1] == -5
    box.put([np.zeros(3, np.float32), np.int32(0)])
    np.testing.assert_array_equal(arrays[0], [5, 5, 5])  # what was read is a copy


WRITER = """
import sys, time
import numpy as np
from pathlib import Path
from frugalrl.runtime import link
spec = (link.Field((4000,), "<f4"),) * 4
box = link.mailbox(Path(sys.argv[1]), spec)
end = time.monotonic() + 1.0
k = 0
while time.monotonic() < end:
    k += 1
    box.put([np.full(4000, k % 1000 + i, np.float32) for i in range(4)])
"""


def test_a_packet_is_never_read_in_halves(tmp_path):
    spec = (link.Field((4000,), "<f4"),) * 4
    box = link.mailbox(tmp_path / "box", spec)
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "box")])
    seen = set()
    while process.poll() is None:
        count, arrays = box.get()
        if count:
            seen.add(count)
            for i, x in enumerate(arrays):
                assert (x == count % 1000 + i).all()
    assert process.wait() == 0
    assert len(seen) > 20


def test_slabs_are_aligned_and_refuse_a_full_disk(tmp_path, monkeypatch):
    spec = (link.Field((3,), "<f4"), link.Field((2, 2), "bool"), link.Field((), "<i4"))
    views = link.views(link.slab(tmp_path / "slab", link.size(spec)), spec)
    assert [x.shape for x in views] == [(3,), (2, 2), ()]
    assert all(x.ctypes.data % link.ALIGN == 0 for x in views)
    monkeypatch.setattr(os, "posix_fallocate", partial(_no_space))
    with pytest.raises(OSError, match="No space"):
        link.slab(tmp_path / "other", 100)


def _no_space(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_folders_of_dead_processes_are_swept_and_others_are_not(system, tmp_path, monkeypatch):
    """On Windows by their age: a signal 0 would be a Ctrl-C there."""
    monkeypatch.setattr(link, "_bases", lambda: [tmp_path])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = f"frugalrl-{dead.pid}-a", f"frugalrl-{os.getppid()}-b", "frugalrl-mine", "other-1-a"
    for name in names:
        (tmp_path / name).mkdir()
    if system == "win32":
        os.utime(tmp_path / names[0], (0, 0))
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(os, "kill", None)
    made = link.shared_folder(100)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[1:], made.name])
    link.remove_own()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])


def test_shared_memory_that_is_too_small_is_not_used(tmp_path, monkeypatch):
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    monkeypatch.setattr(link, "_bases", lambda: [small, large])
    monkeypatch.setattr("shutil.disk_usage", lambda p: type("", (), {"free": 64e6 if p == small else 1e12}))
    assert link.shared_folder(100).parent == small
    assert link.shared_folder(60_000_000).parent == large


# what an actor does


def test_transitions_are_what_happened(tmp_path):
    made = parts()
    actor_, _ = worker(made, tmp_path)
    ended, steps = [], []
    for _ in range(6):
        ended += actor_.unroll(actor_.slots[0].items)
        steps.append(Transition(*(x.copy() for x in actor_.slots[0].items)))
    t = Transition(*(np.concatenate(x) for x in zip(*steps, strict=True)))  # [48, 2, ...]
    done = t.terminated | t.truncated
    assert done.any()
    assert not (t.terminated & t.truncated).any()
    np.testing.assert_array_equal(t.next_obs[..., 0], t.obs[..., 0])  # one instance
    np.testing.assert_array_equal(t.next_obs[..., 1], t.obs[..., 1])  # of the same episode, also where it ends
    np.testing.assert_array_equal(t.next_obs[..., 2], t.obs[..., 2] + 1)
    np.testing.assert_allclose(t.reward, t.next_obs[..., 2] + 0.1 * t.action, rtol=1e-6)
    np.testing.assert_array_equal(t.terminated, (t.obs[..., 1] % 2 == 0) & (t.next_obs[..., 2] == 5))
    np.testing.assert_array_equal(t.truncated, t.next_obs[..., 2] == 7)
    np.testing.assert_array_equal(t.obs[1:][~done[:-1]], t.next_obs[:-1][~done[:-1]])
    fresh = t.obs[1:][done[:-1]]  # after an end: the first observation of the next episode
    assert (fresh[:, 2] == 0).all()
    np.testing.assert_array_equal(fresh[:, 1], t.obs[:-1][done[:-1]][:, 1] + 1)

    ends = [(t.reward[i : j + 1, lane].sum(), j + 1 - i) for lane in range(2) for i, j in _spans(done[:, lane])]
    np.testing.assert_allclose(sorted(one[:2] for one in ended), sorted(ends), atol=1e-3)


def _spans(done: np.ndarray) -> list[tuple[int, int]]:
    """First and last step of each finished episode of a lane."""
    last = np.flatnonzero(done)
    return list(zip([0, *(last[:-1] + 1)], last, strict=True))


@pytest.mark.parametrize(
    ("mode", "engine"), [("fp32", "numpy"), ("fp32", "litert"), ("int8", "litert"), ("int8", "numpy")]
)
def test_log_probs_are_those_of_the_compressed_policy_of_that_version(mode, engine, tmp_path, monkeypatch):
    if mode not in engines.engine(engine).modes:
        pytest.skip(f"{engine} does not run {mode}")
    monkeypatch.setattr(actor, "REFRESH_SHARE", 1e9)  # every packet is taken
    made = parts(mode=mode, engine=engine)
    actor_, box = worker(made, tmp_path)
    generator, log_probs = np.random.default_rng(0), []
    for version in range(4):
        state = made.carry.state._replace(
            version=jnp.int32(version),
            params=jax.tree.map(lambda x: x + generator.standard_normal(x.shape, np.float32), made.carry.state.params),
            hyper=made.carry.state.hyper._replace(total_steps=jnp.float32(100)),
        )
        box.put(packet_of(made, state))
        slot = actor_.slots[0].items
        actor_.unroll(slot)
        assert (slot.version == version).all()
        packet, *_ = jax.device_get(made.learner.ship(state))
        session = engines.engine(engine).build(made.spec.layers, made.spec.obs, 2, mode)
        session.load(packet.weights)
        outputs = np.stack([session.run(slot.obs[t]) for t in range(8)])
        dist = epsilon_greedy(outputs, packet.knobs)
        np.testing.assert_array_equal(slot.log_prob, dist.log_prob(slot.action))
        log_probs.append(slot.log_prob.copy())
    assert len(np.unique(log_probs)) > 4  # the policies do differ


def test_refreshing_takes_a_bounded_share_of_an_actors_time(tmp_path):
    actor_, box = worker(parts(), tmp_path)
    load, loads = actor_.session.load, []

    def slow(weights):
        began = time.perf_counter()
        time.sleep(0.004)
        load(weights)
        loads.append((began, time.perf_counter()))

    actor_.session = actor_.session._replace(load=slow)
    arrays, end = box.get()[1], time.perf_counter() + 60
    while len(loads) < 4 and time.perf_counter() < end:
        box.put(arrays)
        actor_.unroll(actor_.slots[0].items)
    assert len(loads) == 4
    for (began, ended), (next_began, _) in pairwise(loads):
        assert next_began - ended > (ended - began) / actor.REFRESH_SHARE


def test_an_actor_that_had_to_wait_takes_the_newest_packet_at_once(tmp_path):
    made = parts()
    actor_, box = worker(made, tmp_path)
    arrays = packet_of(made, made.carry.state)
    actor_.unroll(actor_.slots[0].items)
    actor_.cost, actor_.look_after = 1.0, np.inf
    for idle, drift, taken in ((0.9, 1.0, False), (1.1, 1.0, True), (0.9, 1.0, False), (9.0, 1e-9, False)):
        box.put(arrays)
        actor_.idle, actor_.cost, actor_.pace = idle, 1.0, actor.Pace(drift)
        before = actor_.refreshes
        actor_.unroll(actor_.slots[0].items)
        assert actor_.refreshes == before + taken
        assert actor_.idle == (0.0 if taken else idle)
        actor_.look_after = np.inf


@pytest.mark.parametrize(("turn", "widest"), [(1.0, actor.STRETCH), (-1.0, 1.0)])
def test_an_actor_looks_less_often_while_its_packets_hardly_differ(turn, widest, tmp_path):
    made = parts()
    actor_, box = worker(made, tmp_path)
    state, waits = made.carry.state, []
    state = state._replace(hyper=state.hyper._replace(exploration_initial_eps=jnp.float32(0.1)))
    for k in range(70):
        state = state._replace(params=(*state.params[:-1], jax.tree.map(lambda x: turn * x, state.params[-1])))
        box.put(packet_of(made, state))
        actor_.look_after = -np.inf
        actor_.timer.take()
        began = time.perf_counter()
        actor_.unroll(actor_.slots[0].items)
        acted = actor_.timer.mark - began
        assert actor_.count == k + 2
        waits.append(actor_.look_after - actor_.timer.mark)
    assert actor_.pace.stretch == widest
    acting = actor_.timer.seconds
    assert all(acting[kind] > 0 for kind in actor.REFRESH)
    assert actor_.cost == pytest.approx(sum(acting[kind] for kind in actor.REFRESH))
    wait = widest * actor_.cost / actor.REFRESH_SHARE
    assert wait - acted < waits[-1] < wait


def test_how_long_to_wait_follows_from_how_far_the_policy_moved():
    assert actor.Pace(actor.DRIFT, 2.0).after(actor.DRIFT) == (actor.DRIFT, 2.0)
    four = 4 * actor.DRIFT
    assert actor.Pace(four, 4.0).after(four) == (four, 2.0)  # twice as far in that time
    still, pace = actor.Pace(1e-9, actor.STRETCH), actor.Pace()
    assert still.after(1e-9).stretch == actor.STRETCH
    for much in (2.0, np.inf, np.nan):
        assert still.after(much) == (pytest.approx(1 / actor.LOOKS), 1.0)
    for k in range(400):  # one observation in twenty tells that the policy moves
        pace = pace.after(3.0 if k % 20 == 0 else -1e-9)
        assert pace.stretch == 1.0
    for _ in range(60):
        pace = pace.after(0.0)
    assert pace.stretch == actor.STRETCH


def test_an_actor_with_a_period_looks_when_it_is_over_and_at_no_other_time(tmp_path):
    made = parts()
    made = made._replace(spec=made.spec._replace(pull_period=3))
    actor_, box = worker(made, tmp_path)
    step, seen = actor_.envs.step, []

    def publish(action):
        seen.append(actor_.version)
        box.put(packet_of(made, made.carry.state._replace(version=jnp.int32(len(seen)))))
        return step(action)

    actor_.envs.step = publish
    for _ in range(2):
        actor_.unroll(actor_.slots[0].items)
    assert seen == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9, 12, 12, 12, 15]
    assert actor_.refreshes == 6
    assert "compare" not in actor_.timer.seconds


def test_an_actor_whose_learner_is_gone_ends_without_a_word():
    for said in (b"", b"aGFsZiBhIHNwZWM", b"\n"):
        ended = subprocess.run(
            [sys.executable, "-m", "frugalrl.runtime.actor"], input=said, capture_output=True, timeout=60
        )
        if said.endswith(b"\n"):
            assert b"EOFError" in ended.stdout  # told to whoever reads its replies
        else:
            assert ended.stdout == b""
        assert ended.stderr == b""


# actors and Learner together


def test_staleness_is_that_of_the_messages_as_they_arrive():
    made, publish, known = parts(updates=3, warmup=16), [], []

    def learn(carry, items, stream, gradient):
        known.append((int(carry.state.version), items.version.copy()))
        carry, metrics = made.learner.learn(carry, items, stream, gradient)
        publish.append(metrics)
        return carry, metrics

    list(made._replace(learner=made.learner._replace(learn=learn)).train(320))
    assert len(known) == 19
    for (now, acted), metrics in zip(known, publish, strict=True):
        assert float(metrics["staleness"]) == pytest.approx((now - acted).mean())
        assert float(metrics["staleness_max"]) == (now - acted).max()
    assert max(float(metrics["staleness"]) for metrics in publish) > 0


def test_both_actors_act_while_the_learner_updates():
    made = parts("fake_env:Slow-v0", updates=300, hidden=(64, 64), warmup=0)
    acting, learning = [], []
    for tick in made.train(600):
        if tick.spans:
            acting.append(tick.spans[0])
            learning.append(tick.spans[1])
    assert {i for i, _, _ in acting} == {0, 1}

    def overlap(begin, end):
        return {i for i, a, b in acting if a < end and b > begin}

    both = [span for span in learning[2:-6] if overlap(*span) == {0, 1}]
    assert len(both) > len(learning[2:-6]) / 2
    assert all(a <= b for _, a, b in acting)
    assert all(b <= c for (_, b), (c, _) in pairwise(learning))  # one Learner


@pytest.mark.parametrize("slots", [1, 2])
def test_an_actor_waits_when_its_slots_are_full(slots):
    made, fleets, ticks = parts(slots=slots, warmup=0), [], []
    for tick in made.train(640, fleets=fleets):
        if tick.spans:
            ticks.append(tick)
            time.sleep(0.02)  # a slow Learner
            assert fleets[0].inbox.qsize() <= 2 * slots
    for i in range(2):
        mine = [(k, tick.spans[0]) for k, tick in enumerate(ticks) if tick.spans[0][0] == i]
        for (freed, _), (_, (_, began, _)) in zip(mine, mine[slots:], strict=False):
            if freed > 0:  # a slot is filled anew only after its message has been taken, so after the tick before that
                assert began > ticks[freed - 1].spans[1][1]
    assert fleets[0].seconds["waiting"] > 0.3


@pytest.mark.parametrize("slots", [1, 2])
def test_what_a_slow_learner_learns_from_is_as_fresh_as_its_queue_is_short(slots):
    """While messages wait an actor goes on only after the update: with a slot each, one of the other's is between."""
    made, late = parts(slots=slots, warmup=0, updates=1), []
    made = made._replace(spec=made.spec._replace(pull_period=made.plan.unroll))
    for tick in made.train(960):
        if tick.metrics:
            late.append(int(tick.metrics["staleness_max"]))
            time.sleep(0.02)
    assert np.median(late) == 2 * slots - 1


@pytest.mark.parametrize(("agent", "slots"), [("dqn", 2), ("impala", 1), ("a2c", 1)])
def test_what_is_learned_from_once_has_a_queue_of_one(agent, slots):
    _, _, static, _, _, cadence = jobs.records(training.configure(agent, "CartPole-v1", runtime="actors"))
    assert jobs._actors_plan(static, cadence).slots == slots


@pytest.mark.parametrize("mode", ["fp32", "int8"])
def test_the_ratio_of_updates_to_steps_is_exact(mode):
    made = parts(mode=mode, updates=3, warmup=64)
    last, total, seen = None, 0, []
    for tick in made.train(320):
        if tick.spans:
            total += 16
            assert tick.step == total == int(tick.carry.step)
            updates = max(0, total - 64) // 16 * 3
            assert int(tick.carry.state.version) == updates
            assert bool(tick.metrics) == (updates > 0)
            seen.append(tick.step)
        last = tick
    assert last is not None
    assert seen == list(range(16, 321, 16))


def windows(made: Parts, carry: actors.Carry, draws: int = 40) -> Transition:
    """Windows sampled from memory, [draws, time, ...]."""
    batches = [
        made.memory.deal(carry.memory, rng.key(k), None)[1](carry.memory, rng.key(k), 0).data for k in range(draws)
    ]
    return Transition(*(np.concatenate(x) for x in zip(*jax.device_get(batches), strict=True)))


def assert_windows_hold_together(t: Transition) -> None:
    """What follows in a window follows in the environment, unless the step before says that its episode ended."""
    done = (t.terminated | t.truncated)[:, :-1]
    np.testing.assert_array_equal(t.obs[:, 1:][~done], t.next_obs[:, :-1][~done])


def test_memory_holds_what_the_actors_sent():
    made = parts(window=3)
    *_, tick = made.train(320)
    t = windows(made, tick.carry)
    assert_windows_hold_together(t)
    assert len(np.unique(t.obs[..., 0])) == 4  # two actors with two environments
    assert t.version.max() > 0
    assert (t.log_prob <= 0).all()


def test_a_killed_actor_is_replaced_and_its_stream_is_cut():
    made, fleets, said = parts("fake_env:Slow-v0", window=3), [], []
    for tick in made.train(2400, fleets=fleets, report=said.append):
        if tick.step == 160 and tick.spans:
            os.kill(fleets[0].processes[tick.spans[0][0]].pid, signal.SIGKILL)
        last = tick
    assert fleets[0].restarts == 1
    assert fleets[0].lost_unrolls == 1  # the one that it was filling; nothing of those at the end, which nobody needs
    assert len(said) == 1
    assert "died and was started anew, its unfinished unroll is lost: exit code -9" in said[0]
    assert last.step == 2400
    t = windows(made, last.carry, 200)
    assert len(np.unique(t.obs[..., 0])) == 6  # of two actors, and of the one that came later
    assert_windows_hold_together(t)
    assert not any(running(p.pid) for p in fleets[0].processes)
    assert not fleets[0].wire.folder.exists()


def test_a_resumed_run_cuts_its_streams_and_draws_other_numbers():
    made, fleets = parts(window=3), []
    *_, first = made.train(320, fleets=fleets)
    made = made._replace(carry=first.carry)
    *_, second = made.train(640, fleets=fleets)
    assert second.step == 640
    assert_windows_hold_together(windows(made, second.carry, 200))
    assert fleets[0].seed != fleets[1].seed


def test_a_finished_run_starts_no_actor():
    made, fleets = parts(), []
    *_, first = made.train(64, fleets=fleets)
    ticks = list(made._replace(carry=first.carry).train(64, fleets=fleets))
    assert [tick.step for tick in ticks] == [64]
    assert len(fleets) == 1


def test_a_stuck_environment_is_told_of_and_does_not_keep_the_run_from_being_stopped(monkeypatch):
    monkeypatch.setattr(actors, "SILENCE", 0.5)
    fleets, said = [], []
    ticks = parts("fake_env:Stuck-v0").train(320, fleets=fleets, report=said.append)
    began = time.monotonic()
    assert [next(ticks).step for _ in range(3)] == [0, 0, 0]
    ticks.close()
    assert time.monotonic() - began < 3 + actors.GRACE + 2
    assert [line[:40] for line in said] == [f"actor {i} has delivered nothing for 0 s: its"[:40] for i in (0, 1)]
    assert fleets[0].lost_unrolls == 2  # those that each was at
    assert not any(running(p.pid) for p in fleets[0].processes)
    assert not fleets[0].wire.folder.exists()


def test_a_learner_that_does_not_look_for_a_while_blames_nobody(monkeypatch):
    fleets, said = [], []
    ticks = parts("fake_env:Walk-v0").train(320, fleets=fleets, report=said.append)
    next(tick for tick in ticks if tick.step)
    wait_for(lambda: fleets[0].filled == fleets[0].given)
    monkeypatch.setattr(actors, "SILENCE", 0.5)
    time.sleep(1)  # it evaluates, say
    assert next(ticks).step
    assert said == []
    ticks.close()
    assert fleets[0].lost_unrolls >= 2  # that were filled


@pytest.mark.parametrize("engine", ["numpy", "litert"])
def test_actors_do_not_import_jax(engine):
    *_, tick = parts("fake_env:NoJax-v0", engine=engine).train(32)
    assert tick.step == 32


def test_what_an_environment_prints_does_not_disturb(capfd):
    *_, tick = parts("fake_env:Chatty-v0").train(64)
    assert tick.step == 64
    said = capfd.readouterr()
    assert said.out == ""
    assert "an environment that talks" in said.err


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ("BrokenReset", "ValueError: no game"),
        ("BrokenStep", "ValueError: the wheel came off"),
        ("Shapeless", "ValueError: "),
    ],
)
def test_an_environment_that_always_fails_ends_the_run(env, reason):
    said = []
    with pytest.raises(
        actors.ActorFailed, match=f"failed 3 times in a row before its first unroll: {reason}"
    ) as failed:
        list(parts(f"fake_env:{env}-v0").train(320, report=said.append))
    assert env == "Shapeless" or "fake_env.py:" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert failed.value.details.startswith("Traceback")
    assert 2 <= len(said) <= 4


# members side by side

RATES = [Hyper(total_steps=1000.0, learning_rate=rate) for rate in (1e-2, 0.0, 1e-4)]


def test_each_member_learns_from_its_own_environments_alone_and_as_often():
    made = parts(hypers=RATES, updates=3, warmup=64)
    width = compiled.Way(1, 2)
    with ThreadPoolExecutor(2) as pool:
        carry = actors.Members(tuple(compiled.split(made.carry, width)))
        made = made._replace(learner=actors.in_parts({1: made.learner}, pool), carry=carry)
        begun = jax.device_get(carry.joined().state.params)
        for tick in made.train(320):
            last = tick
            for part in tick.carry.parts:
                assert part.step.tolist() == [tick.step]
                assert part.memory.position.sum() * 2 == tick.step
                assert part.state.version.tolist() == [max(0, tick.step - 64) // 16 * 3]
    carry, lives, moved = last.carry.joined(), [], []
    for k in range(3):
        t = windows(made, compiled._pick(carry, k))
        lives.append(set(np.unique(t.obs[..., 0])))
        assert len(lives[k]) == 4  # two actors with two environments of its own
        assert_windows_hold_together(t)
        moved.append(max(np.abs(x[k] - y[k]).max() for x, y in zip(carry.state.params[0], begun[0], strict=True)))
    assert moved[0] > 3 * moved[2] > 0 == moved[1]
    assert len(set.union(*lives)) == 12


def test_a_member_acts_with_its_own_policy(tmp_path):
    made = parts(hypers=RATES)
    state = made.carry.state._replace(hyper=made.carry.state.hyper._replace(exploration_initial_eps=jnp.arange(3) / 4))
    actor_, box = worker(made, tmp_path)
    box.put(packet_of(made, state))
    slot = actor_.slots[0].items
    actor_.unroll(slot)
    packet, *_ = jax.device_get(made.learner.ship(state))
    for k in range(3):
        session = engines.engine("numpy").build(made.spec.layers, made.spec.obs, 2, "fp32")
        session.load(jax.tree.map(lambda x, k=k: x[k], packet.weights))
        own = slice(2 * k, 2 * k + 2)
        dist = epsilon_greedy(
            np.stack([session.run(x) for x in slot.obs[:, own]]), {"epsilon": packet.knobs["epsilon"][k]}
        )
        np.testing.assert_array_equal(slot.log_prob[:, own], dist.log_prob(slot.action[:, own]))
    assert (slot.log_prob[:, :2] == 0).all()  # without exploration
    assert (slot.log_prob[:, 2:] < 0).all()


def test_a_member_learns_what_it_would_learn_alone():
    made, alone = parts(hypers=RATES, warmup=0), parts(warmup=0)
    r, one = np.random.default_rng(0), np.zeros((8, 6), np.float32)
    items = Transition(
        r.standard_normal((8, 6, 3)).astype(np.float32), r.integers(0, 2, (8, 6)).astype(np.int32),
        r.standard_normal((8, 6)).astype(np.float32), one > 0, one > 0,
        r.standard_normal((8, 6, 3)).astype(np.float32), one, one.astype(np.int32),
    )  # fmt: skip
    begun = [jax.tree.map(jnp.copy, compiled._pick(made.carry, k)) for k in range(3)]
    together, metrics = made.learner.learn(made.carry, items, np.int32(1), [])
    for k in range(3):
        share = jax.tree.map(lambda x, k=k: x[:, 2 * k : 2 * k + 2], items)
        solo, own = alone.learner.learn(begun[k], share, np.int32(1), [])
        assert float(metrics["loss"][k]) == pytest.approx(float(own["loss"]), rel=1e-4)
        for x, y in zip(jax.tree.leaves(compiled._pick(together, k).state), jax.tree.leaves(solo.state), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_member_that_is_not_finite_acts_as_it_last_could():
    last = [np.zeros((3, 2), np.float32), np.int32([4, 4, 4])]
    new = [np.float32([[1, 2], [np.nan, 0], [3, 4]]), np.int32([5, 5, 5])]
    kept = actors.without_lost(new, last)
    assert [x.tolist() for x in kept] == [[[1, 2], [0, 0], [3, 4]], [5, 4, 5]]


# whole runs


HYPER = {"hidden": (8,), "batch_size": 16, "learning_starts": 128, "train_freq": 16}
SMALL: dict[str, Any] = {"steps": 1280, "hyper": HYPER}
WORDS = ("--steps", "1280", "--hyper", "hidden=8", "batch_size=16", "learning_starts=128", "train_freq=16")


@pytest.mark.parametrize("env", ["BrokenReset", "BrokenStep"])
def test_a_run_that_cannot_begin_is_one_line(env, tmp_path, capfd):
    assert cli.main(["train", "dqn", f"fake_env:{env}-v0", *WORDS, "--quiet", "--out", str(tmp_path / "run")]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "ValueError" in said.err
    assert f"frugal resume {tmp_path / 'run'}" in said.err
    assert (tmp_path / "run" / "config.json").exists()


def test_a_run_that_breaks_off_keeps_what_it_had(tmp_path, monkeypatch, capfd):
    out, flag = tmp_path / "run", tmp_path / "flags" / "up"
    flag.parent.mkdir()
    monkeypatch.setenv("FAKE_ENV_FLAG", str(flag))
    words = ["train", "dqn", "fake_env:Flagged-v0", *WORDS, "--steps", "12800"]
    assert cli.main([*words, "--quiet", "--out", str(out)]) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "ValueError: the flag is up" in said
    assert len(checkpoints(out)) == 1
    assert not receipt(out)["finished"]
    assert has_rows(out, 1)
    kept = rows(out)
    flag.unlink()
    flag.parent.rmdir()
    assert cli.main(["resume", str(out), "--quiet"]) == 0
    assert rows(out)[: len(kept)] == kept
    steps = [row["step"] for row in rows(out)]
    assert steps == sorted(set(steps))
    assert len(steps) == 10
    assert receipt(out)["actors"]["restarts"] >= 2


def test_an_environment_that_cannot_be_evaluated_is_one_line(tmp_path, capfd):
    out = tmp_path / "run"
    assert cli.main(["train", "dqn", "fake_env:BrokenOutside-v0", *WORDS, "--quiet", "--out", str(out)]) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "the evaluation at step 128 failed: ValueError: nobody may look" in said
    assert checkpoints(out) == []  # or the run would go on without that evaluation
    assert not receipt(out)["finished"]


def test_the_receipt_tells_what_the_actors_did(tmp_path, monkeypatch):
    out, fleet, look = tmp_path / "run", actors.Fleet, ledger.Ledger.look
    specs, late = [], []
    monkeypatch.setattr(actors, "Fleet", lambda spec, *rest: specs.append(spec) or fleet(spec, *rest))
    monkeypatch.setattr(
        ledger.Ledger, "look", lambda self, parts, tick, due: late.append(tick.metrics) or look(self, parts, tick, due)
    )
    words = ["train", "dqn", "fake_env:Walk-v0", *WORDS, "--actors", "int8", "--pull-period", "8", "--quiet"]
    assert cli.main([*words, "--out", str(out)]) == 0
    assert [spec.pull_period for spec in specs] == [8]
    made = receipt(out)
    assert made["actors"]["mode"] == "int8"
    assert made["actors"]["processes"] == 2
    assert made["actors"]["restarts"] == made["actors"]["lost_unrolls"] == 0
    assert made["actors"]["refreshes"] >= 2
    assert made["actors"]["packet_bytes"] > 0
    assert all(made["time_split"][name] is not None for name in ("environment", "inference", "transport", "learner"))
    told, split = made["actors"], made["time_split"]
    taking = [told[f"{kind}_seconds"] for kind in actor.REFRESH]
    assert all(seconds > 0 for seconds in taking[:-1])
    assert taking[-1] == 0  # there is nothing to adapt
    assert told["staleness_max"] == max(metrics.get("staleness_max", 0.0) for metrics in late)
    assert told["refresh_seconds"] == pytest.approx(sum(taking))
    assert split["compressor"] > told["refresh_seconds"]
    assert told["step_seconds"] > split["environment"] + split["inference"]
    assert all(row["staleness_max"] >= row["staleness"] >= 0 for row in rows(out) if "staleness" in row)
    assert rows(out)[-1]["staleness_max"] == told["staleness_max"] >= told["staleness"] > 0
    page = (out / "report.html").read_text()
    assert all(words in page for words in ("pull_seconds", "staleness_max", "of refreshing (pull"))
    assert [row["step"] for row in rows(out)] == [128 * (k + 1) for k in range(10)]


@pytest.mark.parametrize(("mode", "together"), [("int8", True), ("int8-static", False)])
def test_seeds_train_side_by_side_or_one_after_the_other(mode, together, tmp_path):
    out = tmp_path / "run"
    words = ["train", "dqn", "fake_env:Walk-v0", *WORDS, "--seeds", "2", "--seed", "5", "--actors", mode, "--quiet"]
    assert cli.main([*words, "--out", str(out)]) == 0
    assert [row["seed"] for row in rows(out)] == ([5, 6] * 10 if together else [5] * 10 + [6] * 10)
    made = receipt(out)
    assert ("batching" in made) == together
    assert len(made["returns"]["per_seed"]) == len(made["actors"]["compressed_returns"]) == 2
    assert made["returns"]["iqm"] == pytest.approx(np.mean(made["returns"]["per_seed"]))
    with np.load(out / "policy" / "seed-0.npz") as a, np.load(out / "policy" / "seed-1.npz") as b:
        assert all((a[name] != b[name]).all() for name in a if name.startswith("w"))


# engines and policies that fail


@pytest.fixture
def fake_engine(monkeypatch):
    """A function that makes `fake_engine` the fastest of all and says what it cannot do in an actor."""
    real, measure = engines.module, engines.measure
    monkeypatch.setattr(engines, "module", lambda name: "fake_engine" if name == "fake" else real(name))
    monkeypatch.setattr(engines, "ACTOR_ENGINES", ("fake", "numpy"))

    def fastest(layers, obs, batch, modes, among=None, **more):
        found = measure(layers, obs, batch, modes, among, **more)
        return [t._replace(microseconds=1.0) if t.engine == "fake" else t for t in found]

    monkeypatch.setattr(engines, "measure", fastest)
    return lambda part: monkeypatch.setenv("FAKE_ENGINE_FAILS", part)


@pytest.mark.parametrize("part", ["build", "load", "run"])
def test_an_engine_that_fails_in_an_actor_is_told_from_an_environment_that_does(part, fake_engine):
    fake_engine(part)
    made, fleets = parts(mode="int8", engine="fake", warmup=1000), []
    with pytest.raises(actors.Unfit, match=f"the engine failed: ValueError: no {part} today$") as unfit:
        list(made.train(3200, fleets=fleets))
    assert (int(unfit.value.carry.step) > 0) == (part == "run")
    assert not any(running(p.pid) for p in fleets[0].processes)


def test_a_compressed_engine_that_fails_is_replaced_by_fp32_and_the_receipt_says_so(tmp_path, fake_engine, capfd):
    fake_engine("run")
    out = tmp_path / "run"
    assert cli.main(["train", "dqn", "fake_env:Walk-v0", *WORDS, "--actors", "int8", "--out", str(out)]) == 0
    made = receipt(out)["actors"]
    assert (made["mode"], made["engine"]) == ("fp32", "numpy")
    fallback = made["fallback"]
    assert (fallback["mode"], fallback["engine"], fallback["seed"]) == ("int8", "fake", 0)
    assert 0 < fallback["step"] < 1280
    assert fallback["reason"] == "the engine failed: ValueError: no run today"
    assert made["restarts"] == 0
    assert [row["step"] for row in rows(out)] == [128 * (k + 1) for k in range(10)]
    said = capfd.readouterr()
    assert said.err.count("int8 was given up at step") == 1
    assert "was given up at step" in " ".join(said.out.split())
    assert "int8 was given up" in (out / "report.html").read_text()


def test_an_fp32_engine_that_fails_is_an_actor_that_fails(tmp_path, fake_engine, capfd):
    fake_engine("build")
    assert cli.main(["train", "dqn", "fake_env:Walk-v0", *WORDS, "--quiet", "--out", str(tmp_path / "run")]) == 1
    assert "failed 3 times in a row before its first unroll: EngineFailed: ValueError" in capfd.readouterr().err


def test_a_mode_that_no_engine_can_start_is_given_up_at_once(tmp_path, monkeypatch):
    real = engines.engine("numpy")

    def build(layers, obs, batch, mode):
        if mode == "int8":
            raise RuntimeError("no such kernel")
        return real.build(layers, obs, batch, mode)

    monkeypatch.setattr(engines, "ACTOR_ENGINES", ("numpy",))
    monkeypatch.setattr("frugalrl.levers.compress.engines.numpy_engine.ENGINE", real._replace(build=build))
    result = training.train("dqn", "fake_env:Walk-v0", **SMALL, actors="int8")
    assert result.receipt["actors"]["mode"] == "fp32"
    assert result.receipt["actors"]["fallback"] == {
        "mode": "int8", "engine": None, "seed": None, "step": None,
        "reason": "numpy cannot run int8 here: RuntimeError: no such kernel",
    }  # fmt: skip


def test_packets_that_are_not_finite_are_replaced_by_fp32(monkeypatch):
    whole = quantise.int8()

    def encode(policy):
        packet = whole.encode(policy)
        if not policy.knobs:  # where engines are measured
            return packet
        bad = jnp.where(policy.knobs["epsilon"] < 0.5, jnp.nan, 1.0).astype(jnp.float32)
        *others, last = packet.weights
        return packet._replace(weights=(*others, last._replace(scale=last.scale * bad)))

    monkeypatch.setitem(quantise.COMPRESSORS, "int8", lambda: whole._replace(encode=encode))
    result = training.train("dqn", "fake_env:Walk-v0", **SMALL, actors="int8")
    made = result.receipt["actors"]
    assert made["mode"] == "fp32"
    assert made["fallback"]["reason"] == "int8 packets are no longer finite"
    assert made["fallback"]["step"] > 128
    assert len(result.rows) == 10


@pytest.mark.parametrize(("env", "mode"), [("Priceless", "fp32"), ("Priceless", "int8"), ("Blind", "fp32")])
def test_a_policy_that_is_not_finite_ends_the_run_and_is_not_kept(env, mode, tmp_path, capfd):
    out = tmp_path / "run"
    words = ["train", "dqn", f"fake_env:{env}-v0", *WORDS, "--actors", mode, "--out", str(out)]
    assert cli.main([*words, "--quiet"]) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "seed 0 has diverged, its weights are no longer finite at step" in said
    assert f"frugal resume {out}" in said
    assert not receipt(out)["finished"]
    assert receipt(out)["actors"]["fallback"] is None
    assert not checkpoints(out)  # of that policy
    assert not (out / "policy").exists()


def test_a_resumed_run_keeps_its_first_fallback():
    first = {"actors": {"mode": "fp32", "fallback": {"step": 5}, "restarts": 1}}
    again = training.added({"actors": {"mode": "int8", "fallback": None, "restarts": 1}}, first)
    assert again["actors"] == {"mode": "int8", "fallback": {"step": 5}, "restarts": 2}


# actors that wait


def watched(made: Parts) -> tuple[Parts, list[tuple[str, int, set[int], int]]]:
    """The same parts, and a list of what the Learner is given: the part, the actor, the rollout's versions, its own."""
    seen: list[tuple[str, int, set[int], int]] = []

    def watch(name: str):
        part = getattr(made.learner, name)

        def call(carry, items, stream, *gradient):
            seen.append((name, int(stream), set(np.asarray(items.version).ravel().tolist()), int(carry.state.version)))
            return part(carry, items, stream, *gradient)

        return call

    learner = made.learner._replace(add=watch("add"), learn=watch("learn"))
    return made._replace(learner=learner, spec=made.spec._replace(steady=made.plan.waits)), seen


def test_actors_that_wait_act_with_the_policy_of_the_last_update():
    made, seen = watched(parts(waits=True, slots=1, warmup=0))
    for _ in made.train(steps=2 * 8 * 2 * 10):
        pass
    assert [name for name, *_ in seen] == ["add", "learn"] * 10
    for (_, first, *_), (_, second, *_) in zip(seen[::2], seen[1::2], strict=True):
        assert {first, second} == {0, 1}
    assert [versions for _, _, versions, _ in seen] == [{4 * (i // 2)} for i in range(20)]
    assert all(versions == {own} for _, _, versions, own in seen)


def test_a_round_survives_the_death_of_an_actor_that_waits():
    made, seen = watched(parts(waits=True, slots=1, warmup=0))
    fleets: list[actors.Fleet] = []
    killed = False
    for tick in made.train(steps=2 * 8 * 2 * 12, fleets=fleets):
        if tick.step >= 2 * 8 * 2 * 4 and not killed:
            killed = True
            fleets[0].processes[0].kill()
    assert killed
    assert fleets[0].restarts == 1
    rounds = [name for name, *_ in seen].count("learn")
    assert rounds >= 11  # one message may have been of an actor that came back within its round
    assert all(versions == {own} for name, _, versions, own in seen if name == "learn")
    assert made.plan.waits


@pytest.mark.long
def test_ppo_in_actor_processes_is_on_policy():
    result = training.train(
        "ppo", "CartPole-v1", steps=2048, runtime="actors", hyper={"hidden": (8,), "num_envs": 4, "n_steps": 64}
    )
    assert result.receipt["actors"]["ratio"] == pytest.approx(1, abs=0.5)  # of the last minibatch, after the updates
    assert result.receipt["steps"] == 2048
    assert result.receipt["actors"]["mode"] == "fp32"


def test_environments_that_cannot_be_shared_evenly_say_so():
    with pytest.raises(UsageError, match="num_envs=4"):
        training.train("ppo", "CartPole-v1", steps=2048, runtime="actors", hyper={"num_envs": 3})


def test_two_policies_are_compared_on_few_observations_and_without_targets():
    config = training.configure("ppo", "CartPole-v1", hyper={"num_envs": 8, "n_steps": 64, "num_minibatches": 1})
    recipe, agent, static, hyper, card, cadence = jobs.records(config)
    lanes, steps, prepared = 8, cadence.rollout, []

    def prepare(state, rollout):
        jax.debug.callback(lambda: prepared.append(0))
        return agent.prepare(state, rollout)

    counted = agent._replace(prepare=prepare)
    memory = jobs.memory_of(recipe, static, card, cadence, lanes=lanes, unroll=steps, streams=1)
    learner = actors.learner(counted, memory, actors.Plan(num_envs=lanes, unroll=steps), quantise.fp32())
    carry = learner.init(rng.key(0), hyper)
    items = jax.tree.map(lambda x: jnp.zeros((steps, lanes, *x.shape), x.dtype), jobs.example(card))
    seen = jax.random.normal(rng.key(1), items.obs.shape)
    carry = carry._replace(memory=memory.add(carry.memory, items._replace(obs=seen)))
    obs, outputs, _, log_ratio = learner.probe(carry)
    jax.effects_barrier()
    assert obs.shape == (actors.PROBED, 4)
    assert len(np.unique(obs, axis=0)) == len(outputs) == len(log_ratio) == actors.PROBED < lanes * steps
    assert not prepared


def test_comparing_policies_takes_a_bounded_share_of_the_time(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(ledger, "perf_counter", lambda: now[0])
    made = jobs.records(training.configure("dqn", "CartPole-v1"))
    kept = ledger.Ledger(made.agent, made.card, actors.Plan(), lambda text: None)
    policy = made.agent.policy(made.agent.init(rng.key(0), made.hyper))
    obs = np.zeros((4, 4), np.float32)
    kept.session = SimpleNamespace(load=lambda weights: None, run=lambda obs: np.zeros((4, 2), np.float32))

    def probe(carry):
        now[0] += 3.0  # seconds that it takes
        return obs, np.zeros((4, 2), np.float32), policy.knobs, np.zeros(4)

    learner = SimpleNamespace(probe=probe, ship=lambda state: (SimpleNamespace(weights=()), 0, ()))
    tick = actors.Tick(64, SimpleNamespace(state=None), {"loss": 0.0}, [], ())
    for _ in range(1000):
        now[0] += 1.0
        assert kept.look(learner, tick)["kl"] == 0.0  # what was seen last holds until the next look
    assert kept.looks == pytest.approx(0.02 * (now[0] - 10) / 3, abs=1)
