"""Writes `rlax_targets.json`: random traces, and what rlax makes of them. The tests of correctors compare with it.

rlax is no dependency of this library, since it needs TensorFlow Probability. To make the file again:

    python3.11 -m venv ENV && ENV/bin/pip install rlax==0.1.9 jax==0.10.2
    ENV/bin/python tests/oracles/rlax_targets.py

rlax knows terminations as a discount of 0 but no truncation inside a trajectory, so each piece between two truncations
is a call of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import rlax
from rlax._src.multistep import importance_corrected_td_errors  # not exported

STEPS, ACTIONS, GAMMA = 12, 3, 0.9
LAMBDAS = (0.0, 0.8, 1.0)
BARS = (0.7, 1.0, 2.5)  # caps on the ratio that are below, at and above that of most steps


def trajectory(seed: int) -> dict:
    """What an agent knows of one trajectory: q and the own (pi) and other (mu) policy [time, actions], the rest [time].

    The `next_*` are of the observation before the auto-reset: those of the next step, unless the episode ended.
    """
    r = np.random.default_rng(seed)
    terminated, truncated = r.random((2, STEPS)) < 0.15
    pi, mu, next_pi = r.dirichlet(np.ones(ACTIONS), (3, STEPS))
    q, next_q = r.standard_normal((2, STEPS, ACTIONS))
    v, next_v = r.standard_normal((2, STEPS))
    goes_on = np.flatnonzero(~(terminated | truncated)[:-1])
    next_q[goes_on], next_pi[goes_on], next_v[goes_on] = q[goes_on + 1], pi[goes_on + 1], v[goes_on + 1]
    return {
        "reward": r.standard_normal(STEPS),
        "discount": np.where(terminated, 0.0, GAMMA),
        "terminated": terminated,
        "truncated": truncated,
        "action": r.integers(0, ACTIONS, STEPS),
        "pi": pi,
        "mu": mu,
        "q": q,
        "v": v,
        "next_pi": next_pi,
        "next_q": next_q,
        "next_v": next_v,
    }


def of_action(table: np.ndarray, t: dict) -> np.ndarray:
    return np.take_along_axis(table, t["action"][:, None], -1)[:, 0]


def traces(t: dict) -> dict:
    """The fields of a Trace of state values and of one of action values."""
    pi, mu = of_action(t["pi"], t), of_action(t["mu"], t)
    both = {
        "reward": t["reward"],
        "discount": t["discount"],
        "ended": t["terminated"] | t["truncated"],
        "log_ratio": np.log(pi / mu),
        "prob": pi,
    }
    state = {"value": t["v"], "bootstrap": t["next_v"]}
    action = {"value": of_action(t["q"], t), "bootstrap": (t["next_pi"] * t["next_q"]).sum(-1)}
    return {"state": both | state, "action": both | action}


def pieces(t: dict) -> list[dict]:
    """The trajectory, cut after every truncation (that is no termination too) as it is for rlax."""
    ends = np.flatnonzero(t["truncated"] & ~t["terminated"]) + 1
    return [{k: v[a:b] for k, v in t.items()} for a, b in zip([0, *ends], [*ends, STEPS], strict=True) if b > a]


def state_values(t: dict, lambda_: float) -> dict:
    rho = of_action(t["pi"], t) / of_action(t["mu"], t)
    reward, discount, v, next_v = t["reward"], t["discount"], t["v"], t["next_v"]
    # rlax takes one array of values; where a termination parts two of them the discount is 0
    values = np.append(v, next_v[-1])
    advantage = rlax.truncated_generalized_advantage_estimation(reward, discount, lambda_, values)
    error = importance_corrected_td_errors(reward, discount, rho, lambda_, values)
    found = {
        "none": (rlax.lambda_returns(reward, discount, next_v, lambda_), advantage),
        "tis": (v + error, error),  # its limit is infinite
    }
    for bar in BARS:
        out = rlax.vtrace_td_error_and_advantage(
            v, next_v, reward, discount, rho, lambda_, clip_rho_threshold=bar, clip_pg_rho_threshold=bar
        )
        found[f"vtrace {bar}"] = (v + out.errors, out.pg_advantage)
    return found


def action_values(t: dict, lambda_: float) -> dict:
    def later(table, last):  # of the next step; the last entry is of an action that was not taken, and not read
        return np.concatenate([table[1:], last])

    reward, discount = t["reward"], t["discount"]
    q, pi = later(t["q"], t["next_q"][-1:]), later(t["pi"], t["next_pi"][-1:])
    mu, action = later(of_action(t["mu"], t), [0.5]), later(t["action"], [0])
    taken = np.take_along_axis(pi, action[:, None], -1)[:, 0]

    def general(keep):
        return rlax.general_off_policy_returns_from_action_values(q, action, reward, discount, keep, pi)

    value = of_action(t["q"], t)
    found = {
        "none": rlax.lambda_returns(reward, discount, (pi * q).sum(-1), lambda_),
        "tis": general(lambda_ * taken / mu),  # its limit is infinite
        "retrace": value + rlax.retrace(t["q"], q, t["action"], action, reward, discount, pi, mu, lambda_, eps=0.0),
        "tree-backup": general(lambda_ * taken),
    }
    return {name: (target, target - value) for name, target in found.items()}


def joined(t: dict, function, lambda_: float) -> dict:
    parts = [function(piece, lambda_) for piece in pieces(t)]
    return {name: [np.concatenate(x) for x in zip(*(p[name] for p in parts), strict=True)] for name in parts[0]}


def plain(x: object) -> object:
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [plain(v) for v in x]
    return [v if isinstance(v, bool) else round(v, 7) for v in np.asarray(x).tolist()]


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    cases = []
    for seed in range(3):
        t = trajectory(seed)
        kinds = {"state": state_values, "action": action_values}
        for kind, trace in traces(t).items():
            targets = {lambda_: joined(t, kinds[kind], lambda_) for lambda_ in LAMBDAS}
            cases.append({"kind": kind, "trace": plain(trace), "targets": plain(targets)})
    head = {"rlax": rlax.__version__, "jax": jax.__version__}
    lines = ",\n".join(json.dumps(case) for case in cases)
    text = json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n"
    Path(__file__).with_suffix(".json").write_text(text)


if __name__ == "__main__":
    main()
