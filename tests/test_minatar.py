"""MinAtar's games in JAX against the package, given the same actions and the same draws of chance."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from minatar import Environment
from scipy.stats import chi2_contingency, chisquare
from small import bits

import frugalrl
from frugalrl import catalog, cli, evaluate, rng
from frugalrl.agents import dqn
from frugalrl.distributions import Categorical
from frugalrl.envs import twins
from frugalrl.envs.make import EnvOptions
from frugalrl.envs.minatar_games import GAMES, ids, parts, seaquest, twin
from frugalrl.envs.minatar_games.game import LEFT, RIGHT, UP, Game, State
from frugalrl.errors import UsageError
from frugalrl.memory import uniform
from frugalrl.runtime import compiled
from frugalrl.training import Result, configure
from frugalrl.types import Agent, Env, Step, Transition

each_game = pytest.mark.parametrize("name", GAMES)


class Draws:
    """Stands in for NumPy's RandomState: what it gives comes from numbers that are told, in their order."""

    def __init__(self):
        self.numbers: list[float] = []

    def rand(self, size: int | None = None) -> Any:
        if size is not None:
            return np.array([self.rand() for _ in range(size)])
        return self.numbers.pop(0)

    def randint(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        if high is None:
            low, high = 0, low
        if size is not None:
            return np.array([self.randint(low, high) for _ in range(size)])
        return low + int(np.float32(self.numbers.pop(0)) * np.float32(high - low))


class Stage(NamedTuple):
    """Something that random play reaches late or never, as attributes of the package's game and fields of ours."""

    theirs: dict[str, Any]
    ours: dict[str, Any]


def board(rows: dict[int, int]) -> np.ndarray:
    return np.array([[row >> x & 1 for x in range(10)] for row in (rows.get(y, 0) for y in range(10))], float)


def column(values: list, length: int, dtype: Any) -> np.ndarray:
    """The newest come last."""
    return np.array([0] * (length - len(values)) + values, dtype)


def crowd(fish: list, subs: list, bullets: list, divers: list) -> Stage:
    """Of Seaquest: entries of its lists about to meet each other, where it matters which comes first."""
    swimmers = sorted([*((*x, 0, False) for x in fish), *((*x, True) for x in subs)], key=lambda x: x[3])
    theirs = {
        "e_fish": fish, "e_subs": subs, "f_bullets": bullets, "divers": divers, "sub_y": 3, "surface": False,
        "diver_count": 5, "shot_timer": 3,
    }  # fmt: skip

    def columns(rows: list, length: int) -> list[np.ndarray]:
        x, y, right, *others = (list(values) for values in zip(*rows, strict=True))
        return [column(values, length, int) for values in (x, y, right, [1] * len(rows), *others)]

    ours = {
        "enemies": seaquest.Enemies(*columns(swimmers, seaquest.ENEMIES)),
        "bullets": seaquest.Bullets(*columns(bullets, seaquest.BULLETS)),
        "divers": seaquest.Divers(*columns(divers, seaquest.DIVERS)),
        "y": 3, "surfaced": False, "aboard": 5, "reload_in": 3,
    }  # fmt: skip
    return Stage(theirs, ours)


STAGES = {
    "Asterix": [Stage({"spawn_speed": 1, "move_speed": 1}, {"spawn_every": 1, "move_every": 1})],
    "Breakout": [
        Stage({"brick_map": board({2: 1 << 5})}, {"bricks": 1 << 15}),  # one brick left
        Stage({"brick_map": board({1: 1023, 3: 1023}), "ball_y": 2}, {"bricks": 1023 | 1023 << 20, "y": 2}),
    ],
    "Freeway": [
        Stage({"terminate_timer": 10}, {"left": 10}),
        Stage({"pos": 1, "move_timer": 0}, {"y": 1, "move_in": 0}),
        Stage({"pos": 2, "move_timer": 0}, {"y": 2, "move_in": 0}),
    ],
    "Seaquest": [
        Stage({"e_spawn_speed": 1, "move_speed": 2}, {"spawn_every": 1, "move_every": 2}),
        Stage({"diver_count": 6, "surface": False}, {"aboard": 6, "surfaced": False}),
        Stage(
            {"e_spawn_speed": 15, "move_speed": 3, "ramp_index": 5, "diver_count": 3, "surface": False},
            {"spawn_every": 15, "move_every": 3, "ramps": 5, "aboard": 3, "surfaced": False},
        ),
        crowd(  # both bullets come to where a fish swims, and both divers to the player, who has room for one
            fish=[[6, 4, True, 0], [3, 2, True, 0], [5, 8, False, 1]],
            subs=[[2, 6, True, 0, 0], [5, 8, False, 0, 3]],
            bullets=[[8, 4, False], [6, 4, True]],
            divers=[[4, 3, True, 0], [5, 3, False, 4]],
        ),
        crowd(  # a bullet comes to two fish, another to a fish and an older submarine
            fish=[[3, 2, True, 1], [3, 2, True, 2], [7, 7, True, 3]],
            subs=[[7, 7, True, 1, 5]],
            bullets=[[6, 7, True], [4, 2, False]],
            divers=[[5, 3, True, 2], [4, 3, True, 0]],
        ),
    ],
    "SpaceInvaders": [
        Stage({"alien_map": board({3: 1 << 5})}, {"aliens": np.array([0] * 5 + [1 << 3] + [0] * 4)}),  # one alien left
        Stage({"enemy_move_interval": 6, "alien_move_timer": 3}, {"move_every": 6, "move_in": 3}),
        Stage({"alien_map": board({9: 2, 7: 4})}, {"aliens": np.array([0, 1 << 9, 1 << 7] + [0] * 7)}),  # about to land
        Stage(  # beside the cannon
            {"alien_map": board({9: 1 << 4 | 1 << 6}), "alien_move_timer": 0},
            {"aliens": np.array([0, 0, 0, 0, 1 << 9, 0, 1 << 9, 0, 0, 0]), "move_in": 0},
        ),
        Stage(  # as near on the left as on the right, if the cannon stays
            {"alien_map": board({2: 1 << 3 | 1 << 7}), "alien_shot_timer": 0},
            {"aliens": np.array([0, 0, 0, 4, 0, 0, 0, 4, 0, 0]), "shot_in": 0},
        ),
    ],
}  # fmt: skip


class Played(NamedTuple):
    """What the package did, [time, ...]."""

    action: np.ndarray
    obs: np.ndarray  # to act on next, after a reset
    reward: np.ndarray
    terminated: np.ndarray
    next_obs: np.ndarray


@cache
def game(name: str) -> Game:
    return import_module(f"frugalrl.envs.minatar_games.{GAMES[name]}").GAME


@cache
def env(name: str, version: int = 0) -> Env:
    return twin(f"MinAtar/{name}-v{version}")


@cache
def numbers(name: str) -> Callable:
    """key of a step -> what it draws for the step, and for a start after it, as the environment draws them."""

    def one(key):
        begin, now = jax.random.split(key)
        return jax.random.uniform(now, (1 + game(name).draws,)), jax.random.uniform(begin, (game(name).draws,))

    return jax.jit(jax.vmap(one))


def package(name: str) -> tuple[Environment, Draws]:
    made, draws = Environment(GAMES[name]), Draws()
    made.random = made.env.random = draws
    return made, draws


def begun(made: Environment, draws: Draws, numbers: np.ndarray) -> np.ndarray:
    draws.numbers = [float(x) for x in numbers]
    made.reset()
    return made.state()


def acted(made: Environment, draws: Draws, numbers: np.ndarray, action: int) -> tuple[float, bool]:
    draws.numbers = [float(x) for x in numbers]
    if getattr(made.env, "e_spawn_timer", 0) > 0:
        del draws.numbers[1:4]  # Seaquest's next enemy is not due, and perhaps a diver, whose numbers come after those
    reward, terminated = made.act(action)
    return float(reward), bool(terminated)


def careful(made: Environment, draws: Draws, numbers: np.ndarray, wishes: np.ndarray) -> int:
    """The first of the wishes that does not end the game, so that it goes on for long."""
    last = made.last_action
    before = pickle.dumps({field: value for field, value in vars(made.env).items() if field != "random"})
    for action in wishes:
        _, ended = acted(made, draws, numbers, int(action))
        vars(made.env).update(pickle.loads(before))
        made.last_action = last
        if not ended:
            return int(action)
    return int(wishes[0])


def play(name: str, steps: int, key: jax.Array, seed: int, stage: Stage | None, first: np.ndarray) -> Played:
    """`steps` steps of the package; by turns the player does anything, or takes care for its life."""
    made, draws = package(name)
    random, rows = np.random.default_rng(seed), []
    begun(made, draws, first)
    for field, value in (stage.theirs if stage else {}).items():
        setattr(made.env, field, deepcopy(value))
    for t, (now, later) in enumerate(zip(*map(np.asarray, numbers(name)(jax.random.split(key, steps))), strict=True)):
        if t % 40 == 0:  # a mood, in which one action is rare and another frequent
            liking = random.dirichlet(np.full(6, 0.5)) + 1e-3
            cares = random.random() < 0.6
        wishes = random.choice(6, 6, replace=False, p=liking / liking.sum())
        action = careful(made, draws, now, wishes) if cares else int(wishes[0])
        reward, terminated = acted(made, draws, now, action)
        next_obs = obs = made.state()
        if terminated:
            obs = begun(made, draws, later)
        rows.append((action, obs, reward, terminated, next_obs))
    return Played(*(np.array(column) for column in zip(*rows, strict=True)))


def follow(name: str, keys: jax.Array, begins: Any, actions: np.ndarray) -> Step:
    """Our answers [streams, time, ...] to the same actions [streams, time]."""

    def one(begin, actions, key):
        keys = jax.random.split(key, actions.shape[0])
        return jax.lax.scan(lambda state, x: env(name).step(state, *x), begin, (actions, keys))[1]

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(begins, jnp.asarray(actions), keys))


def begin(name: str, key: jax.Array, stage: Stage | None) -> State:
    return changed(env(name).reset(key)[0], stage.ours if stage else {})


def changed(state: State, fields: dict[str, Any]) -> State:
    """With some fields of the game's own state changed."""
    game = state.episode.state
    new = {k: jax.tree.map(lambda old, x: jnp.asarray(x, old.dtype), getattr(game, k), v) for k, v in fields.items()}
    return state._replace(episode=state.episode._replace(state=game._replace(**new)))


def compare(name: str, streams: int, steps: int) -> list[Played]:
    stages = [None, *STAGES[name]]
    stages = [stages[i % len(stages)] for i in range(streams)]
    keys = jax.random.split(rng.key(7), 2 * streams).reshape(2, streams)
    first = [np.asarray(jax.random.uniform(key, (game(name).draws,))) for key in keys[0]]
    theirs = [play(name, steps, keys[1][i], i, stage, first[i]) for i, stage in enumerate(stages)]
    begins = jax.tree.map(lambda *x: jnp.stack(x), *(begin(name, keys[0][i], stage) for i, stage in enumerate(stages)))
    ours = follow(name, keys[1], begins, np.stack([played.action for played in theirs]))
    for i, played in enumerate(theirs):
        for field in ("reward", "terminated", "next_obs", "obs"):
            same = (getattr(ours, field)[i] == getattr(played, field)).reshape(steps, -1).all(1)
            assert same.all(), (i, field, int(np.argmin(same)))
    assert not ours.truncated.any()
    return theirs


@each_game
def test_every_step_is_the_packages(name):
    streams = compare(name, streams=12, steps=200)
    assert sum(played.reward.sum() for played in streams) > 2
    assert sum(played.terminated[:-50].sum() for played in streams) > 2  # and episodes after those


@pytest.mark.long
@each_game
def test_every_step_of_long_play_is_the_packages(name):
    assert sum(len(played.reward) for played in compare(name, streams=20, steps=2500)) == 50_000


@pytest.mark.parametrize("env_id", ids())
def test_specs_are_those_of_gymnasium(env_id):
    made = twin(env_id)
    assert (made.obs, made.actions) == catalog.spaces(env_id)
    assert made.time_limit is None
    name, minimal = parts(env_id)
    theirs = Environment(name)
    if minimal:
        assert list(import_module(f"frugalrl.envs.minatar_games.{name}").GAME.minimal) == theirs.minimal_action_set()


def test_minimal_actions_are_taken_for_what_they_are():
    key, state = rng.key(1), env("Breakout", 1).reset(rng.key(0))[0]
    steps = jax.jit(jax.vmap(env("Breakout", 1).step, (None, 0, None)))
    after = steps(state, jnp.arange(3, dtype=jnp.int32), key)[0]
    assert after.last.tolist() == [0, LEFT, RIGHT] == Environment("breakout").minimal_action_set()
    assert after.episode.state.paddle.tolist() == [4, 3, 5]


@each_game
def test_a_step_keeps_structure_and_dtypes(name):
    made, key = env(name), rng.key(0)
    state, obs = jax.eval_shape(made.reset, key)
    for dtype in (jnp.int32, jnp.uint8):
        after, step = jax.eval_shape(made.step, state, jnp.zeros((), dtype), key)
        assert after == state
        assert not any(x.weak_type for x in jax.tree.leaves(after))
        assert step.obs == step.next_obs == obs
        assert [(x.shape, x.dtype) for x in step[1:4]] == [((), jnp.float32), ((), jnp.bool_), ((), jnp.bool_)]
    assert (obs.shape, obs.dtype) == (made.obs.shape, jnp.bool_)


def test_an_episode_begins_anew():
    """After it ended nothing is left of it but, as in the package, the last action, which may stick."""
    made = twin("MinAtar/Breakout-v1", sticky_actions=0.0)
    step = jax.jit(made.step)
    state, key = made.reset(rng.key(0))[0], rng.key(1)
    for _ in range(200):
        key, now = jax.random.split(key)
        before = state
        state, seen = step(state, jnp.int32(1), now)
        if seen.terminated:
            break
    assert (before.episode.steps > 0, state.last, state.episode.steps) == (True, LEFT, 0)
    fresh, obs = made.reset(jax.random.split(now)[0])
    assert fresh.last == 0
    assert bits((state.episode, seen.obs)) == bits((fresh.episode, obs))
    assert (seen.obs != seen.next_obs).any()


@pytest.mark.parametrize("time_limit", [None, 7])
def test_episodes_are_cut_off_only_if_asked(time_limit):
    made = twin("MinAtar/Freeway-v1", time_limit=time_limit)
    keys, (state, _) = jax.random.split(rng.key(0), 30), made.reset(rng.key(1))
    _, step = jax.lax.scan(lambda s, key: made.step(s, jnp.int32(0), key), state, keys)
    assert np.flatnonzero(step.truncated).tolist() == ([6, 13, 20, 27] if time_limit else [])


# chance


N = 8_000


def many(name: str, seed: int, action: int = 0, sticky: float = 0.1, **fields: Any) -> tuple[Any, np.ndarray]:
    """(states of a game, last actions) after one step with as many keys, from a start with some fields changed."""
    made = twin(f"MinAtar/{name}-v0", sticky_actions=sticky)
    state = changed(made.reset(rng.key(0))[0], fields)._replace(last=jnp.int32(LEFT))
    steps = jax.jit(jax.vmap(made.step, (None, None, 0)))
    after, _ = steps(state, jnp.int32(action), jax.random.split(rng.key(seed), N))
    return jax.tree.map(np.asarray, (after.episode.state, after.last))


def likely(values: np.ndarray, shares: dict[Any, float]) -> None:
    """Asserts that values occur as often as they should, and no others."""
    found = Counter(values.tolist())
    assert set(found) == set(shares)
    expected = [shares[value] * len(values) for value in shares]
    assert len(shares) == 1 or chisquare([found[value] for value in shares], expected).pvalue > 1e-4


def evenly(values: Any) -> dict[Any, float]:
    return dict.fromkeys(values, 1 / len(values))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
def test_actions_stick_as_often_as_they_should(share):
    _, last = many("Breakout", 2, RIGHT, share)
    likely(last, {action: p for action, p in ((LEFT, share), (RIGHT, 1 - share)) if p})


def test_sticking_and_spawning_have_nothing_to_do_with_each_other():
    game, last = many("Asterix", 3, RIGHT, 0.5, spawn_in=0)
    assert chi2_contingency(np.histogram2d(last, game.gold.any(1), 2)[0]).pvalue > 1e-4


def test_asterix_spawns_in_any_free_row():
    there = np.isin(np.arange(10), (2, 3, 8))
    game, _ = many("Asterix", 4, spawn_in=0, there=there)
    new = game.there & ~there
    assert (new.sum(1) == 1).all()
    likely(new.argmax(1), evenly((1, 4, 5, 6, 7)))
    likely(game.gold.any(1), {True: 1 / 3, False: 2 / 3})
    likely(game.right.any(1), evenly((True, False)))
    full = np.isin(np.arange(10), range(1, 9))
    assert not (many("Asterix", 4, spawn_in=0, there=full)[0].there != full).any()


def test_breakout_starts_on_either_side():
    starts = jax.vmap(env("Breakout").reset)(jax.random.split(rng.key(5), N))[0].episode.state
    likely(np.asarray(starts.x), evenly((0, 9)))
    assert ((starts.x == 0) == (starts.right == 1)).all()


def test_freeway_draws_a_speed_for_each_car():
    speeds = [s for s in range(-5, 6) if s]
    starts = jax.vmap(env("Freeway").reset)(jax.random.split(rng.key(6), N))[0].episode.state
    won, _ = many("Freeway", 7, UP, y=1, move_in=0)
    cars = won.speed[won.y == 9]
    assert 0.85 * N < len(cars) < 0.95 * N
    for car in range(8):
        likely(np.asarray(starts.speed)[:, car], evenly(speeds))
        likely(cars[:, car], evenly(speeds))
    assert abs(np.corrcoef(cars, rowvar=False) - np.eye(8)).max() < 0.05


def test_seaquest_draws_enemies_and_divers():
    game, _ = many("Seaquest", 8, spawn_in=0, diver_in=0)
    enemies, divers = (type(x)(*(field[:, -1] for field in x)) for x in (game.enemies, game.divers))
    assert enemies.there.all()
    assert divers.there.all()
    likely(enemies.sub, {True: 1 / 3, False: 2 / 3})
    for swimmers in (enemies, divers):
        likely(swimmers.right, evenly((True, False)))
        likely(swimmers.y, evenly(range(1, 9)))
        assert abs(np.corrcoef(swimmers.y, swimmers.right)[0, 1]) < 0.05
    assert abs(np.corrcoef(enemies.y, divers.y)[0, 1]) < 0.05


# the library's side


def test_environments_go_to_the_compiled_runtime_by_themselves():
    for env_id in ids():
        assert configure("dqn", env_id).runtime == "compiled"
    published = {"sticky_actions": 0.0, "time_limit": 9, "clip_reward": True, "timeout_as_terminal": True}
    assert configure("dqn", "MinAtar/Breakout-v1", env_options=published).runtime == "compiled"
    told = twins.twin("MinAtar/Breakout-v1", EnvOptions(**published))
    assert told is twin("MinAtar/Breakout-v1", sticky_actions=0.0, time_limit=9)
    for other in ({"frame_stack": 2}, {"kwargs.difficulty_ramping": False}):
        assert configure("dqn", "MinAtar/Breakout-v1", env_options=published | other).runtime == "actors"
    with pytest.raises(UsageError, match="knows no --env-option frame_stack=2: use"):
        configure("dqn", "MinAtar/Breakout-v1", env_options=published | {"frame_stack": 2}, runtime="compiled")


def test_an_evaluation_is_cut_off_where_there_is_no_time_limit(monkeypatch):
    monkeypatch.setattr(evaluate, "MAX_STEPS", 5)
    still = Agent(*(None,) * 7, None)._replace(
        dist=lambda policy, obs, key: Categorical(jnp.array([1.0, 0.0, 0.0, 0.0]))
    )  # type: ignore[arg-type]
    played = jax.jit(evaluate.on_twin(still, env("SpaceInvaders", 1), 3))((), rng.key(0))
    assert played.lengths.tolist() == [5, 5, 5]


def test_looking_for_a_twin_imports_no_jax():
    program = (
        "import sys; from frugalrl.catalog import has_twin; assert has_twin('MinAtar/Seaquest-v0');"
        "sys.exit(bool({'jax', 'minatar'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_run_promotes_no_dtype_and_no_rank():
    made = env("Breakout", 1)
    agent = dqn.assemble(dqn.Static(), made.obs, made.actions)
    obs, zero, flag = jnp.zeros(made.obs.shape, jnp.bool_), jnp.float32(0), jnp.bool_(False)
    memory = uniform(
        Transition(obs, jnp.int32(0), zero, flag, flag, obs, zero, jnp.int32(0)), 200, 16, lanes=2, unroll=2
    )
    run = compiled.run(agent, made, memory, compiled.Plan(2, 2, 1, 3))
    carry = jax.eval_shape(run.init, rng.key(0), dqn.Hyper())
    after, _ = jax.eval_shape(run.advance, carry, jnp.int32(2))
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(carry)] == [(x.shape, x.dtype) for x in jax.tree.leaves(after)]


HYPER = {
    "dqn": {"learning_starts": 64, "num_envs": 4, "batch_size": 16},
    "ppo": {"num_envs": 4, "n_steps": 32, "num_minibatches": 4},
}


@pytest.mark.long
@each_game
@pytest.mark.parametrize("agent", HYPER)
def test_a_seed_repeats_its_run_in_one_program_and_its_policy_plays_the_package(agent, name, tmp_path):
    env_id, options = f"MinAtar/{name}-v1", {"time_limit": 200}  # Seaquest's player may wait on the surface for ever

    def train(folder: str) -> Result:
        return frugalrl.train(
            agent, env_id, steps=1024, seeds=2, hyper=HYPER[agent], env_options=options, out=tmp_path / folder
        )

    first, again = train("first"), train("again")
    assert first.receipt["runtime"] == "compiled"
    assert bits(first.actor.weights) == bits(again.actor.weights)
    assert [row["episode_return"] for row in first.rows] == [row["episode_return"] for row in again.rows]
    one, other = first.actor.weights
    assert all((a.w != b.w).any() for a, b in zip(one, other, strict=True))
    played = evaluate.on_gymnasium(
        first.predict, env_id, 3, parallel=3, options=EnvOptions(**options), obs_dtype="bool"
    )
    assert (played.lengths > 4).all()
    assert max(played.lengths.max(), *(row["episode_length"] for row in first.rows)) <= 200


@pytest.mark.long
@pytest.mark.parametrize("agent", HYPER)
def test_actors_train_on_the_package_and_as_published(agent, tmp_path):
    options = {"clip_reward": True, "time_limit": 50, "timeout_as_terminal": True}
    run = frugalrl.train(
        agent, "MinAtar/Seaquest-v0", steps=1024, runtime="actors", hyper=HYPER[agent], env_options=options,
        out=tmp_path / "run",
    )  # fmt: skip
    assert run.receipt["runtime"] == "actors"
    assert run.receipt["episode_cap"] is None
    assert max(row["episode_length"] for row in run.rows) <= 50
    assert cli.main(["eval", str(tmp_path / "run"), "--episodes", "2"]) == 0


@pytest.mark.parametrize("agent", catalog.AGENTS)
def test_all_games_in_both_versions_have_the_same_defaults(agent):
    (family,) = (family for family in catalog.FAMILIES if family.extra == "minatar")
    first, *others = (catalog.defaults(agent, env_id) for env_id in family.ids)
    assert others == [first] * len(others)
    if agent == "pqn":
        assert (first[0], first[1]["num_envs"], first[1]["num_minibatches"]) == (10_000_000, 128, 32)
