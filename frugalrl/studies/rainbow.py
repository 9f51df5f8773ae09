"""Revisiting Rainbow: what each component does to DQN, and what Rainbow is without it (Obando-Ceron and Castro 2021).

Settings are those of the paper's code (arXiv 2011.14826), with constant hyper-parameters as in its figures. Where that
code has faults or other rules, this is what it meant: noise is drawn anew (it drew one for ever, as two arms do on the
classic tasks), a time-out is no termination and bootstraps from the last observation, rewards are not clipped.

Other differences. Importance exponents rise to 1 instead of staying at 0.5; weights start orthogonal instead of
uniform. Priorities are of the error where the paper's are the root of the loss, which differs where Huber's is linear,
and of distributions the root of their divergence, where its is that of the cross-entropy. Four environments side by
side instead of one; on LunarLander-v3, where actors bring 16 steps of each, eight. CartPole-v1 ends after 200 steps as
the paper's CartPole-v0 does, MountainCar-v0 after the 600 of its code. MinAtar's games run for a tenth of the paper's
steps, with its six actions (v0). Returns are those of greedy episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import pi
from typing import Any, NamedTuple

from ..envs.make import namespace
from ..training import configured
from .findings import equal_return, learns_better, like, not_everywhere
from .study import Arguments, Finding, Study, merged


class Rate(NamedTuple):
    """What the paper chose for each agent and task."""

    learning_rate: float
    train_freq: int  # environment steps for an update


class Setting(NamedTuple):
    steps: int
    hyper: dict[str, Any]  # of all agents
    epsilon: dict[str, float]  # of those without noise
    dqn: Rate  # also of agents made of it, and of M-DQN
    rainbow: Rate  # also with quantiles
    quantile: Rate  # of QR-DQN, IQN and M-IQN
    munchausen: Mapping[str, float]  # of M-DQN; of M-IQN alpha alone
    env_options: Mapping[str, Any] = {}
    implicit: Mapping[str, Any] = {}  # of IQN and M-IQN


_MLP = {
    "hidden": (512, 512), "batch_size": 128, "buffer_size": 50_000, "learning_starts": 500,
}  # fmt: skip
_GAME_STEPS = 1_000_000
_CNN = {"network": "planes", "batch_size": 32, "buffer_size": 100_000, "learning_starts": 1_000}
# chances of a random action: from the first step on, also where noise explores; and at first always
_SELDOM = {"exploration_initial_eps": 0.01, "exploration_final_eps": 0.01, "exploration_fraction": 0.0}
_LESS_AND_LESS = {**_SELDOM, "exploration_initial_eps": 1.0, "exploration_fraction": 250_000 / _GAME_STEPS}
_ALL = {  # 1e6: gradients are not shortened
    "num_envs": 4, "gradient_steps": 1, "gamma": 0.99, "tau": 1.0, "optimizer_eps": 3.125e-4, "max_grad_norm": 1e6,
    "noisy_std": 0.1, "prioritized_replay_beta": 0.5,
}  # fmt: skip


def _range(most: float) -> dict[str, float]:
    return {"v_min": -most, "v_max": most}


_OFTEN = {**_MLP, "target_update_interval": 100, "rescale_obs": True}
# Munchausen's bonus: log-probabilities times tau, cut off and times alpha
_SOFT = {"munchausen_tau": 100.0, "munchausen_alpha": 1.0, "munchausen_clip": 1000.0}
_HARD = {"munchausen_tau": 0.03, "munchausen_alpha": 0.9, "munchausen_clip": 1.0}
# what observations are rescaled by in the paper's code: where velocities have no bounds, or far ones, they matter less
_CARTPOLE_BOUNDS, _ACROBOT_BOUNDS = (2.4, 5.0, pi / 12, 2 * pi), (1.0, 1.0, 1.0, 1.0, 5.0, 5.0)
_GAME = Setting(
    _GAME_STEPS, {**_CNN, "target_update_interval": 1000, **_range(100.0)}, _LESS_AND_LESS, Rate(2.5e-4, 4),
    Rate(1e-4, 4), Rate(1e-4, 4), _HARD,
)  # fmt: skip
# Dopamine's for the blog's Atari games, Adam's; noise and the rest as elsewhere in the study
_ATARI = Setting(
    10_000_000,
    {
        "batch_size": 32, "buffer_size": 1_000_000, "learning_starts": 20_000, "target_update_interval": 8_000,
        "optimizer_eps": 1.5e-4, **_range(10.0),
    },
    {**_LESS_AND_LESS, "exploration_fraction": 250_000 / 10_000_000},
    Rate(6.25e-5, 4), Rate(6.25e-5, 4), Rate(6.25e-5, 4), _HARD,
)  # fmt: skip
CARTPOLE, ACROBOT, CAR, LANDER = "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3"
CLASSIC = (CARTPOLE, ACROBOT, CAR, LANDER)
GAMES = tuple(f"MinAtar/{name}-v0" for name in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"))
FREEWAY, SEAQUEST = GAMES[2], GAMES[3]
SETTINGS = {
    CARTPOLE: Setting(
        30_000, {**_OFTEN, **_range(200.0), "obs_bounds": _CARTPOLE_BOUNDS}, _SELDOM, Rate(1e-3, 4), Rate(1e-4, 2),
        Rate(1e-4, 2), _SOFT, {"time_limit": 200},
    ),
    ACROBOT: Setting(
        30_000, {**_OFTEN, **_range(200.0), "obs_bounds": _ACROBOT_BOUNDS}, _SELDOM, Rate(1e-3, 4), Rate(1e-4, 2),
        Rate(1e-4, 2), _SOFT,
    ),
    CAR: Setting(
        30_000, {**_OFTEN, **_range(100.0)}, _SELDOM, Rate(1e-2, 4), Rate(1e-4, 2), Rate(1e-4, 2), _SOFT,
        {"time_limit": 600},
    ),
    LANDER: Setting(
        120_000, {**_MLP, "target_update_interval": 300, **_range(300.0)}, _SELDOM, Rate(1e-3, 4), Rate(1e-3, 4),
        Rate(1e-3, 4), _SOFT, implicit={"train_freq": 2, "target_update_interval": 100},
    ),
    **dict.fromkeys(GAMES, _GAME),
}  # fmt: skip
# of an environment that the paper has not: what DQN has for it, where that is no component
_TAKEN = (
    *("batch_size", "buffer_size", "learning_starts", "target_update_interval", "gamma", "tau", "num_envs"),
    *("gradient_steps", "optimizer_eps", "max_grad_norm"),
)


def setting(env: str) -> Setting:
    """How agents train on a task of the study, or on another environment. Raises UsageError for one without actions to
    choose from.
    """
    if env in SETTINGS:
        return SETTINGS[env]
    family = namespace(env)
    if family in ("MinAtar", "ALE"):
        return _GAME if family == "MinAtar" else _ATARI
    dqn = configured("dqn", env)
    rate = Rate(dqn.hyper["learning_rate"], dqn.hyper["train_freq"])
    hyper = {name: dqn.hyper[name] for name in _TAKEN}
    if dqn.hyper["hidden"]:
        hyper["hidden"] = dqn.hyper["hidden"]
    return Setting(dqn.steps, hyper, {name: dqn.hyper[name] for name in _SELDOM}, rate, rate, rate, _HARD)


# its priorities are the root of the loss: of mean returns that is about the error, of distributions the root of theirs
_ERRORS, _LOSSES = {"prioritized_replay_alpha": 1.0}, {"prioritized_replay_alpha": 0.5}
_ON = {
    "double": {"double": True},
    "prioritized": {"prioritized": True},
    "dueling": {"dueling": True},
    "n-step": {"n_step": 3},
    "distributional": {"atoms": 51, "distribution": "categorical"},
    "noisy": {"noisy": True},
}
_OFF = {
    "double": {"double": False}, "prioritized": {"prioritized": False}, "dueling": {"dueling": False},
    "n-step": {"n_step": 1}, "distributional": {"atoms": 1, **_ERRORS}, "noisy": {"noisy": False},
}  # fmt: skip
_WHOLE = {name: value for part in _ON.values() for name, value in part.items()} | _LOSSES
_PLAIN = {"n_step": 1, "double": False, "loss": "huber", **_ERRORS}  # where DQN's own defaults are others


def _dqn(**hyper: Any) -> Arguments:
    return {"agent": "dqn", "hyper": {**_PLAIN, **hyper}}


def _rainbow(**hyper: Any) -> Arguments:
    return {"agent": "rainbow", "hyper": {**_WHOLE, **hyper}}


ADDED = {f"+ {name}": _dqn(**hyper) for name, hyper in _ON.items()}
REMOVED = {f"- {name}": _rainbow(**hyper) for name, hyper in _OFF.items()}
_OTHERS = {
    "QR-DQN": {"agent": "qrdqn", "hyper": {"n_step": 1, "atoms": 51}},
    "QRainbow": _rainbow(distribution="quantile"),
    "IQN": {"agent": "iqn", "hyper": {"n_step": 1, "atoms": 32}},
    "IRainbow": _rainbow(distribution="implicit", atoms=32),
    "M-DQN": {"agent": "mdqn", "hyper": {"n_step": 1, "loss": "huber"}},
    "M-IQN": {"agent": "miqn", "hyper": {"n_step": 1, "atoms": 32, "munchausen_tau": 0.03, "munchausen_clip": 1.0}},
}
_SIZES = {
    "DQN, batch 32": _dqn(batch_size=32), "Rainbow, batch 32": _rainbow(batch_size=32),
    "DQN, 64x64": _dqn(hidden=(64, 64)), "DQN, one layer": _dqn(hidden=(512,)),
}  # fmt: skip
_FROZEN = {
    "+ noisy, frozen": _dqn(noisy=True, frozen_noise=True), "Rainbow, frozen noise": _rainbow(frozen_noise=True)
}  # fmt: skip
RATES = {"a tenth of the rate": 0.1, "ten times the rate": 10.0}
_AT_RATES = {
    f"{name}, {rate}": _dqn(**hyper) for rate in RATES for name, hyper in (("DQN", {}), ("+ noisy", _ON["noisy"]))
}
ARMS = {"DQN": _dqn(), **ADDED, "Rainbow": _rainbow(), **REMOVED, **_OTHERS, **_SIZES, **_AT_RATES, **_FROZEN}


def at_rate(arm: str, rate: Rate) -> dict[str, Any]:
    """How fast an arm learns: at the rate, or at the part or multiple of it that the arm's name says."""
    times = next((by for name, by in RATES.items() if arm.endswith(name)), 1.0)
    return {"learning_rate": times * rate.learning_rate, "train_freq": rate.train_freq}


def _own(about: Setting, arm: str) -> Arguments:
    """What is an arm's own on a task: how fast it learns, how it explores, and what Munchausen's bonus is made of."""
    if arm in REMOVED or "Rainbow" in arm:
        rate = about.rainbow
    else:
        rate = about.quantile if arm in ("QR-DQN", "IQN", "M-IQN") else about.dqn
    hyper = at_rate(arm, rate) | (_SELDOM if ARMS[arm]["hyper"].get("noisy") else about.epsilon)
    if arm in ("IQN", "M-IQN"):
        hyper |= about.implicit
    if arm == "M-DQN":
        hyper |= about.munchausen
    if arm == "M-IQN":
        hyper["munchausen_alpha"] = about.munchausen["munchausen_alpha"]
    return {"hyper": hyper}


def task(env: str, arms: Mapping[str, Arguments]) -> dict[str, Any]:
    """A task at the paper's settings, `arms` each with what is its own there."""
    about = setting(env)
    common = {"env": env, "steps": about.steps, "hyper": {**_ALL, **about.hyper, **about.epsilon}, "arms": arms}
    return common | ({"env_options": about.env_options} if about.env_options else {})


def _task(env: str) -> dict[str, Any]:
    about = setting(env)
    return task(env, {arm: _own(about, arm) for arm in _OF.get(env, _EVERYWHERE)})


# one run of DQN in a notebook of the paper's repository: the mean training return of every third 1,000 steps
_RETURNS = (147.9, 200.0, 194.7, 177.0, 200.0, 155.3, 128.4, 130.1, 145.4, 200.0)
_THEIRS = [*zip(range(3_000, 30_001, 3_000), _RETURNS, strict=True)]
AS_PUBLISHED = f"{CARTPOLE} as published"
_EVERYWHERE = ("DQN", *ADDED, "Rainbow", *REMOVED, *_OTHERS)
_OF = {
    CARTPOLE: (*_EVERYWHERE, *_SIZES, *_AT_RATES, *_FROZEN), ACROBOT: (*_EVERYWHERE, *_SIZES, *_FROZEN),
    CAR: (*_EVERYWHERE, *_FROZEN),
}  # fmt: skip
_BETTER, _WORSE = learns_better(), not_everywhere(len(SETTINGS))
# what the paper found, in its order
CLAIMS = {
    "1": "All components together are the best agent, and none helps everywhere.",
    "2": "Distributions alone harm DQN on Acrobot-v1 and in Freeway, Rainbow is better without them on MountainCar-v0 "
    "and in Seaquest, and LunarLander-v3 needs them.",
    "3": "Noise and the squared error help DQN at rates that do not suit it, and noise helps where rewards are rare.",
    "4": "With Adam the squared error is better, with RMSProp Huber's loss, and Adam with the squared error is best.",
    "5": "Quantiles gain from the other components too, and are better than atoms in MinAtar but for Freeway, worse "
    "elsewhere; Munchausen helps DQN in MinAtar alone.",
    "6": "Narrow and single layers are worse, and small batches, which Rainbow bears better than DQN.",
}


def _asked(question: str, ours: str, base: str, *tasks: str) -> Finding:
    return Finding(question, ours, base, _BETTER, tasks=tasks)


STUDY = Study(
    name="rainbow",
    claim="All components together are the best agent, and none helps everywhere (Revisiting Rainbow, Obando-Ceron and "
    "Castro 2021, arXiv 2011.14826).",
    base={},
    tasks={
        **{name: _task(name) for name in SETTINGS},
        AS_PUBLISHED: task(CARTPOLE, {"DQN": merged(_own(SETTINGS[CARTPOLE], "DQN"), _dqn(loss="mse"))}),
    },
    arms=ARMS,
    figures={
        "DQN and each component": ("DQN", *ADDED, "Rainbow"),
        "Rainbow without each component": ("Rainbow", *REMOVED, "DQN"),
        "Quantiles and Munchausen": ("DQN", "Rainbow", *_OTHERS),
        "Noise, drawn anew and not": ("DQN", "+ noisy", "+ noisy, frozen", "Rainbow, frozen noise"),
        "Batches, layers and learning rates": ("DQN", *_SIZES, *_AT_RATES),
    },
    findings=(
        Finding("1. Is all of them together better than none?", "Rainbow", "DQN", _BETTER, together=True),
        *(
            Finding("1. Is Rainbow worse without a component?", "Rainbow", arm, _BETTER, together=True)
            for arm in REMOVED
        ),
        *(
            Finding("1. Does a component make DQN worse on some task?", arm, "DQN", _WORSE, together=True)
            for arm in ADDED
        ),
        _asked("2. Is DQN better without distributions alone?", "DQN", "+ distributional", ACROBOT, FREEWAY),
        _asked("2. Is Rainbow better without distributions?", "- distributional", "Rainbow", CAR, SEAQUEST),
        _asked("2. Does the lander need distributions?", "+ distributional", "DQN", LANDER),
        _asked("2. Does the lander need distributions?", "Rainbow", "- distributional", LANDER),
        *(
            _asked("3. Does noise help where rewards are rare?", arm, "DQN", ACROBOT, CAR)
            for arm in ("+ noisy", "+ noisy, frozen")
        ),
        *(
            _asked(f"3. Does noise help DQN at {rate}?", f"+ noisy, {rate}", f"DQN, {rate}", CARTPOLE)
            for rate in RATES
        ),
        _asked("Is noise that is drawn once better for DQN than noise drawn anew?", "+ noisy, frozen", "+ noisy"),
        _asked("Is it for Rainbow?", "Rainbow, frozen noise", "Rainbow"),
        Finding("Is DQN like the run of the paper's repository?", "DQN", "DQN", like(_THEIRS), tasks=(AS_PUBLISHED,)),
        Finding(
            "Is its second half as unstable?", "DQN", "DQN", like(_THEIRS, after=15_000), tasks=(AS_PUBLISHED,)
        ),
        _asked("5. Do the other components help quantiles too?", "QRainbow", "QR-DQN"),
        *(
            finding
            for arm in ("QRainbow", "IRainbow")
            for finding in (
                _asked("5. Are atoms better than quantiles in Rainbow?", "Rainbow", arm, *CLASSIC, FREEWAY),
                _asked(
                    "5. Are quantiles better than atoms in Rainbow?", arm, "Rainbow",
                    *(name for name in GAMES if name != FREEWAY),
                ),
            )
        ),
        Finding("5. Is nothing lost without Munchausen?", "DQN", "M-DQN", equal_return(), tasks=CLASSIC),
        _asked("5. Does Munchausen help DQN?", "M-DQN", "DQN", *GAMES),
        Finding("5. Is nothing lost without Munchausen?", "IQN", "M-IQN", equal_return()),
        _asked("6. Is DQN worse with small batches?", "DQN", "DQN, batch 32"),
        Finding("6. Does Rainbow lose nothing with small batches?", "Rainbow, batch 32", "Rainbow", equal_return()),
        _asked("6. Are narrow layers worse?", "DQN", "DQN, 64x64"),
        _asked("6. Is one layer worse than two?", "DQN", "DQN, one layer"),
    ),
    seeds=10,
    claims={number: CLAIMS[number] for number in "12356"},
    batched=True,
    other=_task,
)  # fmt: skip
