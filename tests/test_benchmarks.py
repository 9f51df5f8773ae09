"""What benchmarks can get wrong before they are run: settings, what a rate or a bar is of, and which rows are kept."""

from itertools import pairwise
from math import prod

import jax
import jax.numpy as jnp
import pytest

from benchmarks import contest, dqn_speed, minatar_cost, rows
from benchmarks.peers import common

CASE = pytest.mark.parametrize("case", dqn_speed.CASES.values(), ids=dqn_speed.CASES)
# ours -> how each peer says it, where it has another word; of a binding the last one
SAID = {
    "batch_size": {"cleanrl": "batch-size", "rejax": "batch_size", "purejaxrl": "BUFFER_BATCH_SIZE"},
    "buffer_size": {
        "cleanrl": "buffer-size", "rejax": "buffer_size", "purejaxrl": "BUFFER_SIZE", "dopamine": "max_capacity",
        "revisiting": "replay_capacity",
    },
    "train_freq": {"cleanrl": "train-frequency", "purejaxrl": "TRAINING_INTERVAL"} | dict.fromkeys(
        ("dopamine", "revisiting"), "update_period"
    ),
    "learning_starts": {"cleanrl": "learning-starts", "rejax": "fill_buffer", "purejaxrl": "LEARNING_STARTS"}
    | dict.fromkeys(("dopamine", "revisiting"), "min_replay_history"),
    "learning_rate": {"cleanrl": "learning-rate", "purejaxrl": "LR"},
    "gamma": {"purejaxrl": "GAMMA"},
    "target_update_interval": {
        "cleanrl": "target-network-frequency", "rejax": "target_update_freq", "purejaxrl": "TARGET_UPDATE_INTERVAL",
    } | dict.fromkeys(("dopamine", "revisiting"), "target_update_period"),
}  # fmt: skip


@CASE
def test_the_contestants_of_a_case_have_its_settings(case):
    ours, s = dqn_speed.hyper(case.settings), case.settings
    for name in case.peers:
        task = dqn_speed.WORDS[name](s, case.seeds)
        assert task.hidden == (s.width,) * 2
        assert ours["hidden"] == f"{s.width},{s.width}"
        assert (task.env, task.steps, task.seeds) == (s.env, s.steps, case.seeds if name in dqn_speed.COMPILED else 1)
        options = {word.rpartition(".")[2]: value for word, value in task.options.items()}
        for key, words in SAID.items():
            if (name, key) != ("rejax", "train_freq"):  # its update follows a step of `num_envs` environments
                assert options[words.get(name, key)] == ours[key], (name, key)
        if name in dqn_speed.COMPILED:
            assert task.num_envs == ours["train_freq"]
        atoms = options.get("n-atoms") or options.get("num_atoms") or 1
        assert (atoms, options.get("update_horizon", 1)) == (ours["atoms"], ours["n_step"])


def test_what_targets_name_is_there():
    assert set(dqn_speed.USUAL) < set(dqn_speed.CASES)
    for name, peer in dqn_speed.TARGETS:
        assert peer in dqn_speed.CASES[name].peers or peer == "compiled", (name, peer)


def products(jaxpr) -> int:
    """Floating-point operations of the matrix products of a traced function."""
    total = 0
    for line in jaxpr.eqns:
        if line.primitive.name == "dot_general":
            contracted = [line.invars[0].aval.shape[i] for i in line.params["dimension_numbers"][0][0]]
            total += 2 * line.outvars[0].aval.size * prod(contracted)
    return total


@CASE
def test_operations_of_an_update_are_those_of_its_matrix_products(case):
    s = case.settings
    sizes = (dqn_speed.OBS, s.width, s.width, (dqn_speed.ACTIONS + s.dueling) * s.atoms)
    weights = [jax.ShapeDtypeStruct(shape, "float32") for shape in pairwise(sizes)]
    obs = jax.ShapeDtypeStruct((s.batch, dqn_speed.OBS), "float32")

    def values(weights, x):
        for matrix in weights[:-1]:
            x = jnp.maximum(x @ matrix, 0)
        return x @ weights[-1]

    def loss(weights, target, obs, after):
        chosen = values(weights, after) if s.double else 0.0
        return jnp.sum((values(weights, obs) - jax.lax.stop_gradient(values(target, after) + chosen)) ** 2)

    found = jax.make_jaxpr(jax.grad(loss))(weights, weights, obs, obs)
    assert products(found.jaxpr) == dqn_speed.update_flops(s)


def test_a_rate_in_training_has_no_start_on_either_side():
    """50 steps a second after 10 s of start, in which ours made 100 steps, CleanRL 300 and a whole program none."""
    done = rows.Trained(
        {"first_update_seconds": 10.0, "compile_seconds": 7.0, "evaluation_seconds": 2.0, "steps": 1_100},
        {"hyper": {"learning_starts": 96, "num_envs": 4, "n_step": 3}}, 10.0 + 2.0 + 40.0,
    )  # fmt: skip
    assert contest.own_training_rate(done, seeds=2) == 50.0
    assert contest.training_rate({"steps": 1_300, "warm_steps": 300, "warm_seconds": 10.0, "wall_seconds": 30.0}) == 50
    assert contest.training_rate({"steps": 1_000, "compile_seconds": 10.0, "wall_seconds": 30.0}) == 50
    with pytest.raises(KeyError):  # a peer that does not tell
        contest.training_rate({"steps": 1_000, "wall_seconds": 30.0})


def test_the_clock_of_a_peer_starts_after_its_first_update(monkeypatch):
    monkeypatch.setattr(common.time, "time", iter([5.0, 6.0]).__next__)
    for steps, first in ((10_000, 1_200), (2_000, 1_000)):
        mark, seen = common.clock(common.Task("DQN", "CartPole-v1", steps, {}), 1_000)
        for done in range(100, steps, 100):
            mark(done)
        assert seen == {"warm_steps": first, "warm_at": 5.0 if steps == 10_000 else 6.0}


def test_a_peer_has_as_many_processes_as_the_trial_was_best_at(monkeypatch, capsys):
    monkeypatch.setattr(dqn_speed, "cores", lambda: 4)
    asked = []

    def peer(name, settings, seeds):
        asked.append((name, settings.steps, seeds))
        return {"training_steps_per_second": {1: 30.0, 4: 20.0}[seeds]}

    monkeypatch.setattr(dqn_speed, "peer", peer)
    case = dqn_speed.CASES["dqn 64x64"]
    assert dqn_speed.rival("dopamine", case) == ("dopamine", 1, {"1": 30.0, "4": 20.0})
    assert asked == [("dopamine", 2_400, 1), ("dopamine", 2_400, 4)]
    assert dqn_speed.rival("rejax", case) == ("rejax", dqn_speed.SEEDS, {})
    assert len(asked) == 2


def test_rows_of_what_is_not_measured_again_are_kept():
    old = [{"case": "a", "n": 1}, {"case": "b", "n": 1}, {"case": "a", "n": 2}]
    assert rows.renewed(old, [], "case") == old
    new = [{"case": "a", "n": 3}]
    assert rows.renewed(old, new, "case") == [old[1], *new]


def points(*returns):
    return [{"step": i, "wall_seconds": 10.0 * i, "episode_return": float(x)} for i, x in enumerate(returns)]


def test_pqn_is_as_good_as_dqn_when_two_evaluations_in_a_row_reach_the_mean_of_three():
    assert minatar_cost.bar([points(99, 1, 2, 6)]) == 3
    assert minatar_cost.bar([points(1, 2, 6), points(4, 4, 4, 7)]) == 4
    assert minatar_cost.bar([points(1, 2)]) is minatar_cost.bar([]) is None
    assert minatar_cost.as_good(points(9, 2, 3, 4, 1), 3.0) == points(0, 0, 3)[2]
    assert minatar_cost.as_good(points(9, 2, 9), 3.0) is None

    def run(seed, minutes, *returns):
        return {"seed": seed, "minutes": minutes, "finished": True, "steps": 4, "evaluations": points(*returns)}

    base = [run(0, 0.5, 0, 3, 3, 3)]
    found = minatar_cost.compared(base, [run(0, 9, 3, 3), run(1, 9, 0, 3, 3), run(2, 9, 0, 3, 0)])
    assert (found["seconds"], found["median_seconds"], found["reached"]) == ([0.0, 10.0, None], 10.0, True)
    late = minatar_cost.compared(base, [run(0, 9, 0, 0, 0, 3, 3), run(1, 9, 3), run(2, 9, 3, 3)])
    assert (late["seeds"], late["base_seeds"], late["reached"]) == ([0, 1, 2], [0], False)
    assert minatar_cost.compared(base, [])["median_seconds"] is None


def test_a_run_of_the_cost_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(rows, "train", lambda folder, words: asked.append(("train", words)))
    monkeypatch.setattr(rows, "resume", lambda folder, words: asked.append(("resume", words)))
    minatar_cost.run(("pqn", 2), 1_000, 5.0, tmp_path)
    (tmp_path / "config.json").write_text("{}")  # all that is left of one that was killed early
    minatar_cost.run(("pqn", 2), 1_000, 5.0, tmp_path)
    box = ["--steps", "1000", "--budget", "5"]
    assert asked[0] == ("train", ["pqn", minatar_cost.ENV, "--seed", "2", "--evaluations", "40", *box])
    assert asked[1] == ("resume", box)
    assert minatar_cost.measured(("pqn", 2), tmp_path) is None
