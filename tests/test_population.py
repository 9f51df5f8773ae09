"""Members differ in what is searched and in nothing else; the worst take over from the best; and all can be resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from small import HYPER, MODULES, bits, small, small_dqn, small_run, start

import frugalrl
from frugalrl import checkpoint, jobs, training
from frugalrl.agents import dqn
from frugalrl.config import configure
from frugalrl.errors import UsageError
from frugalrl.levers.population import evolution, search
from frugalrl.levers.population.watch import Watch
from frugalrl.monitor import machine, members
from frugalrl.monitor.files import plain
from frugalrl.runtime import compiled

STEPS = 1_500
TINY = {"hidden": (16,), "batch_size": 32, "learning_starts": 200}
RANGES = {"learning_rate": "log:1e-5:1e-2", "gamma": "uniform:0.9:0.999"}
PBT = search.Population("pbt", 8, RANGES, ready=100)
PRIORS = search.priors("dqn", RANGES)


def test_ranges_and_values_are_read_as_they_are_written():
    read = search.priors("dqn", {"gamma": "uniform:0.9:0.99:3", "hidden": "choice:64,64:32", "n_step": "choice:1,3"})
    assert read["gamma"] == search.Prior("uniform", (0.9, 0.99), 3)
    assert read["hidden"].values == ((64, 64), (32,))
    assert read["n_step"].values == (1, 3)
    assert search.written([(64, 64), (32,)]) == "choice:64,64:32"
    assert search.points(search.prior("dqn", "learning_rate", "log:1e-4:1e-2:3")) == pytest.approx([1e-4, 1e-3, 1e-2])


def test_members_are_drawn_over_the_whole_range_and_are_the_first_of_a_larger_population():
    many = search.begun(PBT._replace(members=400), PRIORS, 3, 0)
    assert many[:8] == search.begun(PBT, PRIORS, 3, 0) != search.begun(PBT, PRIORS, 4, 0)
    rates = np.log10([values["learning_rate"] for values in many])
    assert -5 <= rates.min() < -4.9
    assert -2.1 < rates.max() <= -2
    assert np.mean(rates < -3.5) == pytest.approx(0.5, abs=0.1)  # even over the logarithm
    sweep = PBT._replace(kind="random")
    assert search.begun(sweep, PRIORS, 3, 0) == search.begun(sweep, PRIORS, 4, 0)  # every seed trains all


def test_a_perturbed_value_moves_and_stays_in_its_range():
    r = np.random.default_rng(0)
    rates = {round(search.perturbed(PRIORS["learning_rate"], 1e-3, r), 9) for _ in range(30)}
    assert rates == {8e-4, 12e-4}
    assert {round(search.perturbed(PRIORS["gamma"], 0.95, r), 4) for _ in range(30)} == {0.9401, 0.9599}
    assert search.perturbed(PRIORS["learning_rate"], 1e-2, r) in (1e-2, 8e-3)
    choice = search.Prior("choice", (1.0, 2.0, 4.0))
    assert {search.perturbed(choice, 2.0, r) for _ in range(30)} == {1.0, 4.0}
    assert {search.perturbed(choice, 4.0, r) for _ in range(30)} == {2.0, 4.0}


def test_selection_replaces_the_worst_by_copies_of_the_best():
    hypers = [{"learning_rate": 1e-3 * (i + 1), "gamma": 0.95} for i in range(8)]
    fitness = np.array([3.0, np.nan, 5, 1, 7, 6, 4, 2])
    sources = set()
    for seed in range(20):
        moves = evolution.selected(fitness, hypers, PBT, PRIORS, np.random.default_rng(seed))
        assert [move.to for move in moves] == [1, 3]  # what is not a number is worst
        for move in moves:
            sources.add(move.source)
            factor = move.hyper["learning_rate"] / hypers[move.source]["learning_rate"]
            assert any(factor == pytest.approx(x) for x in (0.8, 1.2))
    assert sources == {4, 5}
    assert evolution.selected(np.full(8, np.nan), hypers, PBT, PRIORS, np.random.default_rng(0)) == []
    anew = evolution.selected(fitness, hypers, PBT._replace(explore="resample"), PRIORS, np.random.default_rng(0))
    assert anew[0].hyper["learning_rate"] not in (3e-3, 4e-3, 6e-3, 7.2e-3, 5e-3)
    assert [evolution.replaced(n, 0.25) for n in (2, 3, 4, 8, 80)] == [1, 1, 1, 2, 20]


def test_pods_load_what_is_better_from_the_leaderboard():
    def entry(score: float, member: int = 0) -> evolution.Entry:
        return evolution.Entry(score, member, 0, {}, None)

    assert evolution.score([1, 2, 3, 4, 5]) == 3.5
    assert evolution.score([1, np.nan]) == -np.inf
    board = evolution.entered([], [entry(1), entry(-np.inf, 1), entry(3, 2)])
    assert [place.score for place in board] == [3, 1]  # nobody loads what is not finite
    board = evolution.entered(board, [entry(2, m) for m in range(3)])
    assert [place.score for place in board] == [3, 2, 2, 2, 1]
    assert [place.score for place in evolution.entered(board, [entry(9), entry(0)])] == [9, 3, 2, 2]
    drawn = [evolution.loads(board, [2, 3, -np.inf], np.random.default_rng(seed)) for seed in range(400)]
    assert {loaded[0] for loaded in drawn if 0 in loaded} == {0}  # the only better one
    assert not any(1 in loaded for loaded in drawn)
    counts = np.bincount([loaded[2] for loaded in drawn], minlength=5) / 400
    logits = (np.array([3, 2, 2, 2, 1]) - 2) / (np.std([3, 2, 2, 2, 1]) + 1e-6)
    assert counts == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=0.08)
    assert evolution.loads([], [1.0], np.random.default_rng(0)) == {}


@cache
def td3_members() -> tuple[Any, Any]:
    """Two members of TD3 after ten updates."""
    hyper = MODULES["td3"].Hyper(learning_rate=1e-2)
    run = small_run(small("td3"), continuous=True)
    carry, _ = jax.jit(jax.vmap(run.advance, (0, None)))(start(run, 2, hyper), jnp.int32(10))
    return tuple(compiled._pick(carry, k) for k in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("copy", search.COPY)
def test_what_a_member_takes_over(copy):
    own, other = td3_members()
    become = evolution.successor(small("td3"), MODULES["td3"].Hyper, copy)
    heir = become(own, other, {"learning_rate": 0.5})
    assert heir.state.hyper.learning_rate == np.float32(0.5)
    assert bits(heir.state.hyper._replace(learning_rate=0)) == bits(other.state.hyper._replace(learning_rate=0))
    assert bits(heir.state.params.actor) == bits(other.state.params.actor) != bits(own.state.params.actor)
    learner = other if copy == "everything" else own
    assert bits(heir.state.params.critic) == bits(learner.state.params.critic)
    assert bits(heir.state.optimizer.critic) == bits(learner.state.optimizer.critic)
    assert bits(heir.memory) == bits(learner.memory) != bits((own if learner is other else other).memory)
    for part in ("env", "obs", "episodes", "key", "iteration"):  # two copies must not live the same life
        assert bits(getattr(heir, part)) == bits(getattr(own, part))
    if copy == "policy":
        assert bits(heir.state.target.actor) == bits(other.state.params.actor)
        assert not any(np.any(x) for x in jax.tree.leaves(heir.state.optimizer.actor))


def test_a_policy_is_not_left_with_critics_that_are_not_finite():
    own, other = td3_members()
    params = own.state.params._replace(critic=jax.tree.map(lambda x: x * jnp.nan, own.state.params.critic))
    heir = evolution.successor(small("td3"), MODULES["td3"].Hyper, "policy")(
        own._replace(state=own.state._replace(params=params)), other, {}
    )
    assert bits((heir.state, heir.memory)) == bits((other.state, other.memory))


@pytest.mark.parametrize("name", ["ppo", "sac", "dqn", "a3c"])
def test_every_kind_of_agent_takes_over_a_policy(name):
    """In the shapes alone: that what is taken over is a state of the same kind."""
    env = "Pendulum-v1" if name == "sac" else "CartPole-v1"
    made = {"kind": "pbt", "members": 2, "search": {"learning_rate": "log:1e-5:1e-2"}, "copy": "policy"}
    config = configure(name, env, population=made)
    _, agent, _, hyper, _, cadence = jobs.records(config)
    agent = jobs.actor_learner.in_rotation(agent, cadence.learners) if cadence.learners else agent
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), hyper))
    carry = compiled.Carry(state, jnp.zeros(3), 0, 0, 0, 0, 0)
    become = evolution.successor(agent, type(hyper), "policy")
    heir = jax.eval_shape(become, carry, carry, {"learning_rate": jnp.float32(1)})
    assert jax.tree.structure(heir.state) == jax.tree.structure(state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(heir.state)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(state)
    ]


def test_only_those_who_take_over_change_whatever_the_chunks():
    run = small_run(small_dqn())
    carry = start(run, 4)
    programs, ends = compiled.Programs(run, carry), []
    become = evolution.successor(small_dqn(), dqn.Hyper, "everything")

    def between(iteration, state):
        return compiled.Succession([(1, 2, {"learning_rate": 0.5})], become) if iteration == 5 else None

    programs.prepare(2)
    for way in (compiled.Way(2, 1), compiled.Way(2, 2)):
        copied = jax.tree.map(jnp.copy, carry)
        ends.append([t.carry() for t in compiled.train(programs, way, copied, [5, 6], between)][-1])
    alone = [t.carry() for t in compiled.train(programs, compiled.Way(2, 1), carry, [5, 6])][-1]
    assert bits(ends[0]) == bits(ends[1])
    for k in (0, 2, 3):
        assert bits(compiled._pick(ends[0], k)) == bits(compiled._pick(alone, k))
    assert np.asarray(ends[0].state.hyper.learning_rate).tolist() == np.float32([1e-2, 0.5, 1e-2, 1e-2]).tolist()
    assert bits(compiled._pick(ends[0], 1).state.params) != bits(compiled._pick(alone, 1).state.params)


def pbt(**options: Any) -> training.Result:
    options = {"members": 4, "search": RANGES, "steps": STEPS, "hyper": TINY, "ready": 300} | options
    return frugalrl.pbt("dqn", "CartPole-v1", **options)


@cache
def whole() -> training.Result:
    return pbt(seeds=2)


def timeless(result: Any) -> list[str]:
    """What was not a number is null in the file that a resumed run reads."""
    return [repr({k: plain(v) for k, v in row.items() if k != "wall_seconds"}) for row in result.rows]


def test_rows_tell_the_lineage_and_the_hyper_parameters_follow_it():
    result = whole()
    assert {(row["seed"], row["member"]) for row in result.rows} == {(s, m) for s in range(2) for m in range(4)}
    for line in members.generations(result.rows).values():
        assert [g.step for g in line] == [300, 600, 900, 1200, 1500]
        for now, after in pairwise(line):
            worst = min(now.rows, key=lambda m: now.rows[m]["fitness"])
            fittest = max(now.rows, key=lambda m: now.rows[m]["fitness"])
            for m, row in now.rows.items():
                rate, next_rate = row["learning_rate"], after.rows[m]["learning_rate"]
                if m == worst:
                    assert row["parent"] == fittest
                    factor = next_rate / now.rows[fittest]["learning_rate"]
                    assert next_rate == pytest.approx(1e-2) or any(factor == pytest.approx(x) for x in (0.8, 1.2))
                else:
                    assert row["parent"] is None
                    assert next_rate == rate
    first = [[g.rows[m]["learning_rate"] for m in range(4)] for g, *_ in members.generations(result.rows).values()]
    assert first[0] != first[1]  # a population of its own for each seed
    early = [row["train_return"] for row in result.rows if row["step"] == 300]
    assert len(set(early)) > 4  # while actions are random, members with the same keys live the same life


def test_the_best_member_of_each_seed_is_what_is_kept():
    result = whole()
    found = result.receipt["population"]
    assert [one["seed"] for one in found["best"]] == [0, 1]
    assert result.returns["per_seed"] == [one["return"] for one in found["best"]]
    assert found["replaced"] == 8  # one of four, four times, of two seeds
    assert len(result.actor.weights) == 2
    assert result.actor.play(20, seed=1).returns.mean() > 0


def test_a_population_killed_and_resumed_is_the_one_that_was_not(tmp_path):
    """With kill -9, wherever it is just then, and a checkpoint at every moment."""
    words = ["pbt", "dqn", "CartPole-v1", "--members", 4, "--seeds", 2, "--steps", STEPS, "--ready", 300, "--out"]
    words += [tmp_path / "run", "--hyper", "hidden=16", "batch_size=32", "learning_starts=200", "--search"]
    words += [f"{name}={what}" for name, what in RANGES.items()]
    program = "import sys; from frugalrl import checkpoint, cli, training; training.SAVE_SECONDS = 0"
    program += "; checkpoint.Writer.due = lambda writer: True; cli.main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, words)], stderr=subprocess.DEVNULL)
    try:
        runs.wait_for(lambda: runs.has_rows(tmp_path / "run", 16), 300)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert runs.checkpoints(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()
    resumed = frugalrl.resume(tmp_path / "run")
    assert resumed is not None
    assert timeless(resumed) == timeless(whole())
    assert bits(resumed.actor.weights) == bits(whole().actor.weights)
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(text in page for text in ("Schedule of learning_rate", "Family tree", "family-1", "takes over from"))


def test_a_checkpoint_from_just_before_members_take_over_is_enough(tmp_path, monkeypatch):
    """Who takes over is decided again, and the same."""
    monkeypatch.setattr(checkpoint, "KEEP", 1000)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint.Writer, "due", lambda writer: True)
    pbt(seeds=2, out=tmp_path)
    later = [path for path in runs.checkpoints(tmp_path) if int(path.stem) > 600]
    assert tmp_path / "checkpoints" / "all" / "600.json" in runs.checkpoints(tmp_path)
    for path in later:
        path.unlink()
    (tmp_path / "receipt.json").unlink()
    resumed = frugalrl.resume(tmp_path)
    assert resumed is not None
    assert timeless(resumed) == timeless(whole())
    assert bits(resumed.actor.weights) == bits(whole().actor.weights)


@pytest.mark.long
def test_a_member_of_a_sweep_is_the_run_that_train_gives():
    result = frugalrl.sweep(
        "dqn", "CartPole-v1", {"learning_rate": [1e-4, 1e-2], "n_step": "choice:1:3"}, grid=True, seeds=2, steps=600,
        hyper=TINY,
    )  # fmt: skip
    best = result.receipt["population"]["best"]
    assert result.receipt["population"]["members"] == 4
    assert len({one["member"] for one in best}) == 1  # the same for all seeds
    hyper = TINY | best[0]["hyper"]
    alone = frugalrl.train("dqn", "CartPole-v1", steps=600, hyper=hyper, seeds=2)
    assert alone.returns["per_seed"] == pytest.approx(result.returns["per_seed"])
    for one, other in zip(jax.tree.leaves(alone.actor.weights), jax.tree.leaves(result.actor.weights), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    told = {(row["seed"], row["member"]): (row["learning_rate"], row["n_step"]) for row in result.rows}
    assert len(set(told.values())) == 4
    assert all(told[0, m] == told[1, m] for m in range(4))


def followed(rows: list[dict[str, Any]]) -> int:
    """How many members took over in these rows of PBT; asserts that what each has from then on comes of its parent."""
    count = 0
    for line in members.generations(rows).values():
        for now, after in pairwise(line):
            for m, row in after.rows.items():
                parent = now.parent(m)
                before = now.rows[m if parent is None else parent]["learning_rate"]
                factors = (1.0,) if parent is None else (0.8, 1.2)
                bounds = () if parent is None else (1e-5, 1e-2)
                found = row["learning_rate"]
                assert any(found == pytest.approx(before * x) for x in factors) or found in map(pytest.approx, bounds)
                count += parent is not None
    return count


def test_a_population_in_actors_is_resumed_where_members_take_over(tmp_path):
    """Two members of PBT, one of which always takes over from the other; and the last of it after a resumption."""
    search = {"learning_rate": RANGES["learning_rate"]}
    hyper = TINY | {"hidden": (8,), "n_step": 3, "learning_starts": 100, "train_freq": 16}
    first = pbt(members=2, search=search, steps=768, ready=256, hyper=hyper, runtime="actors", out=tmp_path)
    assert [row["step"] for row in first.rows] == [256, 256, 512, 512, 768, 768]
    assert "seeds" in first.receipt["batching"]["way"] or "seed at a time" in first.receipt["batching"]["way"]
    assert (tmp_path / "checkpoints" / "all" / "768.json").exists()
    assert followed(first.rows) == 2
    resumed = frugalrl.resume(tmp_path, steps=1024)
    assert resumed is not None
    assert timeless(resumed)[:6] == timeless(first)
    assert [row["step"] for row in resumed.rows[6:]] == [1024, 1024]
    assert followed(resumed.rows) == 3
    assert resumed.receipt["population"]["replaced"] == 3
    assert resumed.returns["per_seed"] == [resumed.receipt["population"]["best"][0]["return"]]


@pytest.mark.long
@pytest.mark.parametrize(("agent", "env"), [("td3", "Pendulum-v1"), ("ppo", "CartPole-v1"), ("rainbow", "CartPole-v1")])
def test_a_population_in_actors_that_was_killed_keeps_its_rows(agent, env, tmp_path):
    words = ["pbt", agent, env, "--members", 3, "--steps", 4096, "--ready", 1024, "--runtime", "actors", "--out"]
    words += [tmp_path / "run", "--hyper", "hidden=16", "--search", "learning_rate=log:1e-5:1e-2"]
    if agent != "ppo":
        words += ["--hyper", "learning_starts=500", "train_freq=16"]
    program = "import sys; from frugalrl import cli, training; training.SAVE_SECONDS = 0.5; cli.main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, words)], stderr=subprocess.DEVNULL)
    try:
        runs.wait_for(lambda: runs.has_rows(tmp_path / "run", 6) and runs.checkpoints(tmp_path / "run"), 300)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    saved, before = max(int(p.name) for p in runs.checkpoints(tmp_path / "run")), runs.rows(tmp_path / "run")
    resumed = frugalrl.resume(tmp_path / "run")
    assert resumed is not None
    kept = [row for row in runs.timeless(before) if row["step"] <= saved]
    assert runs.timeless(runs.rows(tmp_path / "run"))[: len(kept)] == kept
    assert len(resumed.rows) == 3 * 4
    assert followed(resumed.rows) == 3


@pytest.mark.long
def test_a_sweep_in_actors_groups_members_by_what_shapes_the_program():
    search = {"learning_rate": [1e-4, 1e-3], "hidden": "choice:8:16"}
    result = frugalrl.sweep(
        "dqn", "CartPole-v1", search, grid=True, steps=640, hyper=TINY, runtime="actors", actors="int8"
    )
    last = [row for row in result.rows if row["step"] == 640]
    assert {(row["member"], row["learning_rate"], tuple(row["hidden"])) for row in last} == {
        (0, pytest.approx(1e-4), (8,)), (1, pytest.approx(1e-4), (16,)),
        (2, pytest.approx(1e-3), (8,)), (3, pytest.approx(1e-3), (16,)),
    }  # fmt: skip
    assert set(result.receipt["batching"]) == {"group-0", "group-1"}


@pytest.mark.parametrize(
    ("agent", "option", "why"),
    [("dqn", {"actors": "half"}, "--actors half is"), ("a3c", {"runtime": "actors"}, "a3c and other actor-learners")],
)
def test_members_that_cannot_train_side_by_side_are_refused(agent, option, why):
    made = {"kind": "pbt", "members": 2, "search": {"learning_rate": "log:1e-5:1e-2"}}
    with pytest.raises(UsageError, match=f"{why}.* not for members of pbt"):
        configure(agent, "CartPole-v1", population=made, **option)


def test_a_population_that_does_not_fit_says_how_many_would(monkeypatch):
    monkeypatch.setattr(jobs, "free_memory", lambda: 100_000_000)
    made = {"kind": "pbt", "members": 64, "search": RANGES}
    config = configure("dqn", "CartPole-v1", steps=50_000, population=made)
    with pytest.raises(UsageError, match=r"64 runs in one program need .* and 100 MB are free: --members (\d+) would"):
        jobs.compiled_job(config, lambda text: None)
    with pytest.raises(UsageError) as refused:
        jobs.compiled_job(config, lambda text: None)
    most = int(str(refused.value).partition("--members ")[2].split()[0])
    fitting = configure("dqn", "CartPole-v1", steps=50_000, population=made | {"members": most})
    assert jobs.compiled_job(fitting, lambda text: None).phases
    beyond = configure("dqn", "CartPole-v1", steps=50_000, population=made | {"members": most + 1})
    with pytest.raises(UsageError):
        jobs.compiled_job(beyond, lambda text: None)


@pytest.mark.parametrize(
    ("kind", "search", "advice"),
    [
        ("grid", {"learning_rate": "log:1e-5:1e-2:40"}, r"\d+ would fit: give --search fewer values, or fewer --seeds"),
        ("random", RANGES | {"n_step": "choice:1:3"}, r"\d+ would fit: give --search fewer values, or fewer --members"),
    ],
)
def test_what_would_fit_is_said_as_it_can_be_asked_for(kind, search, advice, monkeypatch):
    monkeypatch.setattr(jobs, "free_memory", lambda: 40_000_000)
    members = {} if kind == "grid" else {"members": 64}
    config = configure("dqn", "CartPole-v1", steps=50_000, population={"kind": kind, "search": search} | members)
    with pytest.raises(UsageError, match=advice):
        jobs.compiled_job(config, lambda text: None)


def test_runs_begin_on_one_accelerator_and_its_memory_counts(monkeypatch):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 80, "bytes_in_use": 10})
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(devices=lambda: [device] * 4))
    assert machine.free_memory() == 70


def test_who_takes_over_does_not_depend_on_where_the_run_was_to_end():
    """What a row has told stays true if the run goes on: iterations of 512 steps end at 20,480, not at 20,000."""
    fitness, rates = np.arange(12.0), np.geomspace(1e-5, 1e-2, 12)
    looks = []
    for steps in (20_000, 40_000):
        made = {"kind": "pbt", "members": 12, "search": {"learning_rate": "log:1e-5:1e-2"}, "ready": 5_000}
        config = configure("ppo", "CartPole-v1", steps=steps, population=made)
        agent, hyper = small_dqn(), dqn.Hyper(learning_rate=jnp.float32(rates))
        watch = Watch(config, 12, agent, dqn.Hyper, {20_480}, {20_480: 20_000}, lambda contents: contents)
        looks.append(watch.look(lambda state: fitness, 20_480, lambda hyper=hyper: hyper))
    assert looks[0].moves == looks[1].moves
    assert len(looks[0].moves) == 3


@pytest.mark.long
def test_a_run_that_goes_on_has_the_lineage_that_it_has_told(tmp_path):
    """Selections are due between the ends of iterations, and the last at the end of the first sitting."""
    many = {"members": 8, "search": {"learning_rate": RANGES["learning_rate"]}, "ready": 300}
    first = frugalrl.pbt(
        "ppo", "CartPole-v1", steps=600, hyper={"hidden": (16,), "num_envs": 2, "n_steps": 64}, out=tmp_path, **many
    )
    resumed = frugalrl.resume(tmp_path, steps=1200)
    assert resumed is not None
    assert timeless(resumed)[: len(first.rows)] == timeless(first)
    assert followed(resumed.rows) == 6  # two of eight, three times


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, sys
sys.path.insert(0, sys.argv[1])
from small import bits, small_dqn, small_run, start
from frugalrl.agents import dqn
from frugalrl.levers.population import evolution
from frugalrl.runtime import compiled
run = small_run(small_dqn())
carry = start(run, 8)
assert compiled.devices() == 4
(way,) = compiled.ways(8, compiled.cores(), compiled.devices())
assert way == compiled.Way(8, 1, 4), way
assert compiled.ways(6, 1, 4)[0].devices == 3 and compiled.ways(7, 1, 4)[0].devices == 1
programs = compiled.Programs(run, carry)
become = evolution.successor(small_dqn(), dqn.Hyper, "everything")
def between(iteration, state):
    jax.block_until_ready(state())
    return compiled.Succession([(1, 6, {"learning_rate": 0.5})], become) if iteration == 4 else None
ends = []
for way in (way, compiled.Way(2, 1)):
    programs.prepare(way.width, way.devices)
    parts = compiled.split(carry, way)
    assert len(parts[0].iteration.sharding.device_set) == way.devices
    assert len({shard.device for shard in jax.tree.leaves(parts[0].memory)[0].addressable_shards}) == way.devices
    ticks = compiled.train(programs, way, jax.tree.map(jnp.copy, carry), [4, 10], between)
    ends.append([(t.carry(), t.metrics) for t in ticks][-1])
for part in ("env", "obs", "key", "iteration"):
    assert bits(getattr(ends[0][0], part)) == bits(getattr(ends[1][0], part)), part
for one, other in zip(jax.tree.leaves(ends[0][0].state), jax.tree.leaves(ends[1][0].state), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)
assert ends[0][0].state.hyper.learning_rate.tolist()[1] == 0.5
print("same")
"""


@pytest.mark.long
def test_members_are_spread_over_devices_and_are_what_they_were(tmp_path):
    """But for the last bits of weights: XLA adds up in another order in a program that it spreads."""
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    told = subprocess.run(
        [sys.executable, "-c", SHARDED, str(Path(__file__).parent)], env=runs.os.environ | environment,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert told.stdout == "same\n", told.stderr[-3000:]


def test_the_ancestry_of_the_best_goes_through_those_it_took_over_from():
    def generation(step: int, parents: dict[int, int]) -> list[dict[str, Any]]:
        return [
            {"seed": 0, "member": m, "step": step, "fitness": step + m, "episode_return": 1.0, "parent": parents.get(m)}
            for m in range(3)
        ]

    rows = [*generation(10, {2: 0}), *generation(20, {0: 1, 1: 2}), *generation(30, {}), *generation(40, {2: 0})]
    (line,) = members.generations(rows).values()
    assert members.best(True, rows) == {0: 2}
    assert members.ancestry(line, 2) == [0, 2, 2, 2]
    assert members.ancestry(line, 1) == [0, 2, 1, 1]  # at 20 it took over from 2, which came of 0
    assert members.summary(search.Population("pbt", 3, {}), rows)["replaced"] == 3
    for row in rows:
        row["rate"] = row["step"] + row["member"]
    # at 20 member 2 loads what member 1 has handed in at 10, before that took over from 2
    rows[4]["parent"] = rows[5]["parent"] = None
    rows[5] |= {"parent": 1, "parent_step": 10}
    rows[1]["parent"] = 2
    rows[2]["parent"] = None
    (line,) = members.generations(rows).values()
    assert members.ancestry(line, 1) == [2, 1, 1, 1]
    assert members.ancestry(line, 2) == [1, None, 2, 2]
    config = {"population": {"kind": "pbt", "search": {"rate": "uniform:0:50"}}}
    chart = "".join(members.sections(config, rows))
    assert "2 takes over from 1 at step 20, as that was at step 10<" in chart
    assert "1 takes over from 2 at step 10<" in chart
    assert "member 2, descended from 1" in chart  # and not from 2, whom member 1 has come of since
    rows[5]["parent_step"] = 7  # a file may say a step that was none
    assert "2 takes over from 1 at step 20, as that was at step 7<" in "".join(members.sections(config, rows))

    rows = [*generation(10, {2: 0}), *generation(20, {0: 1, 1: 2}), *generation(30, {}), *generation(40, {2: 0})]
    chart = "".join(members.sections({"population": {"kind": "pbt", "search": {}}}, rows))
    assert "2 takes over from 0 at step 10" in chart
    assert "2 takes over from 0 at step 40" not in chart  # nobody went on from there
    assert json.dumps(members.told({"kind": "grid", "members": 2, "best": []}))
    assert HYPER.learning_rate == 1e-2
