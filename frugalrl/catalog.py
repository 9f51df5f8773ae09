"""The one table of what the command line knows by name: agents, environments, and their defaults."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from .envs import make, twins
from .envs.minatar_games import GAMES
from .errors import UsageError, one_line
from .monitor import files
from .types import Box, Discrete, Recipe, Space


class Entry(NamedTuple):
    module: str
    name: str  # of its Recipe there
    summary: str
    discrete: bool = True  # takes discrete actions
    continuous: bool = False
    images: int = 1  # takes images as observations, of at least so many pixels a side; 0: only vectors


AGENTS = {
    "dqn": Entry("frugalrl.agents.dqn", "recipe", "Q-learning with replay and a target network"),
    "rainbow": Entry("frugalrl.agents.dqn", "rainbow", "dqn with double, dueling, noisy, n_step, atoms, prioritized"),
    "qrdqn": Entry("frugalrl.agents.dqn", "qrdqn", "dqn with quantiles of returns at fixed fractions"),
    "iqn": Entry("frugalrl.agents.dqn", "iqn", "dqn with quantiles of returns at random fractions"),
    "mdqn": Entry("frugalrl.agents.dqn", "mdqn", "dqn whose reward has the policy's log-probability (Munchausen)"),
    "miqn": Entry("frugalrl.agents.dqn", "miqn", "iqn with mdqn's reward"),
    "pqn": Entry("frugalrl.agents.pqn", "recipe", "Q-learning from rollouts, LayerNorm for replay and target network"),
    "ppo": Entry("frugalrl.agents.ppo", "ppo", "policy gradient, clipped, several passes over a rollout", True, True),
    "a2c": Entry("frugalrl.agents.ppo", "a2c", "policy gradient, one update a rollout, all actors in step", True, True),
    "impala": Entry("frugalrl.agents.ppo", "impala", "policy gradient, actors that do not wait, V-trace", True, True),
    "a3c": Entry(
        "frugalrl.agents.a3c", "recipe", "asynchronous actor-critic, in earnest in --runtime actors", True, True
    ),
    "ptr-ppo": Entry("frugalrl.agents.ppo", "ptr_ppo", "ppo with a replay of rollouts by priority", True, True),
    "sac": Entry("frugalrl.agents.sac", "recipe", "entropy beside return, twin critics", True, True, 15),
    "td3": Entry("frugalrl.agents.td3", "recipe", "deterministic actor, twin critics", False, True, 0),
    "ddpg": Entry("frugalrl.agents.ddpg", "recipe", "deterministic actor, one critic", False, True, 0),
    "d4pg": Entry("frugalrl.agents.d4pg", "recipe", "ddpg with a distribution for a critic", False, True, 0),
}

# Squared error, because Huber's bounded gradient lets the rare terminal step lose to the many before it, and values
# grow without end; long returns, because one step at a time 100 steps of value take 100 target updates.
_CONTROL = {"loss": "mse", "learning_rate": 5e-4, "double": True, "n_step": 10}

# a tenth of so few steps, as PQN has it, is too little to explore in
_ROLLOUT_Q = {"learning_rate": 2e-3, "num_envs": 16, "n_epochs": 4, "q_lambda": 0.95, "exploration_fraction": 0.3}

_PENDULUM = {"hidden": (64, 64), "batch_size": 128, "learning_rate": 1e-3}
# as Stable-Baselines3's zoo has them for MuJoCo; not measured here yet
_MUJOCO_STEPS, _MUJOCO_STARTS = 1_000_000, {"learning_starts": 10_000}

# Atari as the papers have it, but for 10 million steps instead of up to 50; not measured here yet. PPO as in OpenAI's
# Baselines, save that the clip range does not fall with the learning rate. DQN with Adam and squared error, better than
# RMSProp and Huber's in 50 of 60 games (Obando-Ceron and Castro 2021, arXiv 2011.14826, section 5.4), at Dopamine's
# settings for them. IMPALA's own defaults are its paper's (Espeholt et al. 2018, arXiv 1802.01561, table G.1); each of
# two actors brings the 32 rollouts of a batch.
_ATARI_STEPS = 10_000_000
_DQN_ATARI = {
    "batch_size": 32, "buffer_size": 1_000_000, "learning_starts": 20_000, "learning_rate": 6.25e-5, "loss": "mse",
    "target_update_interval": 8_000, "exploration_final_eps": 0.01, "exploration_fraction": 250_000 / _ATARI_STEPS,
}  # fmt: skip

# of each agent and environment, or namespace of environments: training steps, and what differs from the agent's own
# defaults
DEFAULTS: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {
    ("dqn", "CartPole-v1"): (50_000, _CONTROL),
    ("dqn", "Acrobot-v1"): (100_000, _CONTROL),
    # What leads to the goal is optimism: every reward is -1 and values start at 0, so whatever was not tried looks
    # better, until all values have sunk to -1 / (1 - gamma). Hence a large gamma, and little time spent on dithering.
    ("dqn", "MountainCar-v0"): (
        120_000,
        _CONTROL
        | {
            "learning_rate": 1e-3,
            "gamma": 0.998,
            "buffer_size": 50_000,
            "train_freq": 16,
            "gradient_steps": 8,
            "exploration_fraction": 0.03,
        },
    ),
    ("dqn", "LunarLander-v3"): (
        300_000,
        {
            "hidden": (256, 256),
            "learning_rate": 6.3e-4,
            "n_step": 3,
            "double": True,
            "learning_starts": 5_000,
            "exploration_fraction": 0.3,
            "exploration_final_eps": 0.02,
        },
    ),
    ("pqn", "CartPole-v1"): (100_000, _ROLLOUT_Q | {"exploration_final_eps": 0.1}),
    ("pqn", "Acrobot-v1"): (100_000, _ROLLOUT_Q),
    # as in the paper's code, for every game; not measured here yet
    ("pqn", "MinAtar"): (10_000_000, {"num_envs": 128, "num_minibatches": 32}),
    ("ppo", "CartPole-v1"): (
        100_000,
        {"learning_rate": 1e-3, "anneal_lr": 1.0, "n_steps": 64, "n_epochs": 10},
    ),
    ("a2c", "CartPole-v1"): (200_000, {"learning_rate": 2e-3, "anneal_lr": 1.0, "n_steps": 16, "gae_lambda": 0.95}),
    ("impala", "CartPole-v1"): (200_000, {}),
    ("ptr-ppo", "CartPole-v1"): (100_000, {}),
    ("a3c", "CartPole-v1"): (200_000, {"learning_rate": 2e-3, "n_steps": 16, "max_grad_norm": 10.0}),
    ("ppo", "Pendulum-v1"): (
        100_000,
        {"learning_rate": 1e-3, "num_envs": 4, "n_steps": 512, "n_epochs": 10, "num_minibatches": 8, "gamma": 0.9},
    ),
    ("ppo", "LunarLander-v3"): (
        1_000_000,
        {
            "num_envs": 16,
            "n_steps": 1024,
            "num_minibatches": 256,
            "gamma": 0.999,
            "gae_lambda": 0.98,
            "ent_coef": 0.01,
        },
    ),
    # not learned at these steps by any of 5 seeds: one update a rollout wants short rollouts, and more of them
    ("a2c", "LunarLander-v3"): (
        500_000,
        {"n_steps": 8, "gae_lambda": 0.95, "anneal_lr": 1.0, "ent_coef": 0.01, "normalize_reward": True},
    ),
    # the paper's 0.98 of the greatest entropy is too much where one wrong push in many lets the pole fall
    ("sac", "CartPole-v1"): (30_000, _PENDULUM | {"target_entropy_scale": 0.5, "n_step": 5}),
    ("sac", "Pendulum-v1"): (20_000, _PENDULUM),
    ("td3", "Pendulum-v1"): (20_000, _PENDULUM),
    ("ddpg", "Pendulum-v1"): (20_000, _PENDULUM),
    ("d4pg", "Pendulum-v1"): (20_000, _PENDULUM | {"v_min": -800.0, "v_max": 0.0, "n_step": 3}),
    ("sac", "HalfCheetah-v5"): (_MUJOCO_STEPS, _MUJOCO_STARTS),
    ("td3", "HalfCheetah-v5"): (_MUJOCO_STEPS, _MUJOCO_STARTS),
    ("ddpg", "HalfCheetah-v5"): (_MUJOCO_STEPS, _MUJOCO_STARTS),
    ("d4pg", "HalfCheetah-v5"): (_MUJOCO_STEPS, _MUJOCO_STARTS | {"v_min": -200.0, "v_max": 1500.0}),
    # chosen on inverted_pendulum-spring, among four settings
    ("ppo", "brax"): (
        500_000,
        {
            "num_envs": 16,
            "anneal_lr": 1.0,
            "n_epochs": 10,
            "num_minibatches": 8,
            "normalize_obs": True,
            "normalize_reward": True,
        },
    ),
    # as the code of DrQ has them (Kostrikov et al. 2020, arXiv 2004.13649), with half the filters, a quarter of the
    # units and half the batch, for a small machine; not measured here yet
    ("sac", "dm_control_pixels"): (
        100_000,
        {
            "hidden": (256, 256),
            "batch_size": 64,
            "learning_rate": 1e-3,
            "learning_starts": 1_000,
            "ent_coef": 0.1,
            "encoder_filters": 16,
        },
    ),
    ("ppo", "MinAtar"): (
        1_000_000,
        {
            "learning_rate": 1e-3,
            "anneal_lr": 1.0,
            "num_envs": 32,
            "n_steps": 64,
            "num_minibatches": 8,
            "ent_coef": 0.01,
        },
    ),
    ("impala", "MinAtar"): (1_000_000, {"num_envs": 32}),
    ("ppo", "ALE"): (
        _ATARI_STEPS,
        {"learning_rate": 2.5e-4, "anneal_lr": 1.0, "clip_range": 0.1, "ent_coef": 0.01},
    ),
    ("dqn", "ALE"): (_ATARI_STEPS, _DQN_ATARI),
    ("impala", "ALE"): (_ATARI_STEPS, {"num_envs": 64}),
}
STEPS = 100_000  # of a pair that is not in the table

# What the agents made of DQN share, after Obando-Ceron and Castro 2021 (arXiv 2011.14826): memory, batch, intervals and
# the last epsilon are theirs. On the classic tasks they act with that epsilon from the first step on, in networks of
# 512x512 and, but for Rainbow, with returns of one step; with 5 steps IQN came to 356 on CartPole-v1, with 10 to 499.
# Only that task was measured here.
_CLASSIC = {
    "batch_size": 128, "buffer_size": 50_000, "learning_starts": 500, "train_freq": 2, "target_update_interval": 100,
    "exploration_final_eps": 0.01, "learning_rate": 5e-4, "n_step": 10,
}  # fmt: skip
_MINATAR_STEPS = 3_000_000  # theirs are 10 million
_PLANES = {
    "batch_size": 32, "buffer_size": 100_000, "learning_starts": 1_000, "target_update_interval": 1_000,
    "exploration_final_eps": 0.01, "exploration_fraction": 250_000 / _MINATAR_STEPS,
}  # fmt: skip
_FAMILY = ("rainbow", "qrdqn", "iqn", "mdqn", "miqn")
_FAMILY_TASKS: dict[str, tuple[int, dict[str, Any]]] = {
    "CartPole-v1": (50_000, _CLASSIC),
    "Acrobot-v1": (100_000, _CLASSIC),
    "MountainCar-v0": (120_000, _CLASSIC),
    "LunarLander-v3": (300_000, _CLASSIC | {"target_update_interval": 300, "hidden": (256, 256), "n_step": 3}),
    "MinAtar": (_MINATAR_STEPS, _PLANES),
    "ALE": (_ATARI_STEPS, {name: value for name, value in _DQN_ATARI.items() if name != "loss"}),
}
# between what returns lie, for categorical atoms; theirs reach twice as far where two numbers differ
_RANGES = {
    "CartPole-v1": (0.0, 100.0), "Acrobot-v1": (-100.0, 0.0), "MountainCar-v0": (-100.0, 0.0),
    "LunarLander-v3": (-300.0, 300.0), "MinAtar": (0.0, 100.0), "ALE": (-10.0, 10.0),
}  # fmt: skip


def _of_the_family(agent: str, task: str) -> tuple[int, dict[str, Any]]:
    """The defaults of one of DQN's family: what all share, what is its own, and the range of returns."""
    steps, shared = _FAMILY_TASKS[task] if agent in _FAMILY else DEFAULTS.get((agent, task), (STEPS, {}))
    low, high = _RANGES[task]
    noise = {"exploration_fraction": 0.0} if agent == "rainbow" else {}
    soft = {"loss": "mse", "munchausen_tau": 0.1} if agent == "mdqn" else {}
    return steps, shared | noise | soft | {"v_min": low, "v_max": high}


DEFAULTS |= {(agent, task): _of_the_family(agent, task) for agent in ("dqn", *_FAMILY) for task in _RANGES}


class Family(NamedTuple):
    """Environments that come with one extra."""

    extra: str  # of the package; "" for the base install
    module: str  # whose import shows that the extra is there
    ids: tuple[str, ...]  # those to show; what else it has can be asked for all the same
    mixed: bool = False  # some have discrete actions and some continuous ones, or some are vectors and some pictures


_MUJOCO = (
    "Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum",
    "Pusher", "Reacher", "Swimmer", "Walker2d",
)  # fmt: skip
# the five that foretell a result on all 57 best (Aitchison et al. 2023, arXiv 2210.02019), and two that all know
_ATARI = ("BattleZone", "DoubleDunk", "NameThisGame", "Phoenix", "Qbert", "Breakout", "Pong")
_DMC = {  # the suite's benchmarking set
    "acrobot": "swingup", "ball_in_cup": "catch", "cartpole": "balance balance_sparse swingup swingup_sparse",
    "cheetah": "run", "finger": "spin turn_easy turn_hard", "fish": "swim upright", "hopper": "hop stand",
    "humanoid": "run stand walk", "manipulator": "bring_ball", "pendulum": "swingup", "point_mass": "easy",
    "reacher": "easy hard", "swimmer": "swimmer6 swimmer15", "walker": "run stand walk",
}  # fmt: skip
# the six that agents are usually compared on from pictures (Hafner et al. 2019, arXiv 1811.04551)
PLANET = ("ball_in_cup-catch", "cartpole-swingup", "cheetah-run", "finger-spin", "reacher-easy", "walker-walk")
# of the ten names and four backends: to describe one takes seconds
_BRAX = ("ant", "halfcheetah", "hopper", "inverted_pendulum", "inverted_pendulum-spring", "reacher")
FAMILIES = (
    Family(
        "",
        "gymnasium",
        ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"),
        True,
    ),
    Family("box2d", "Box2D", ("LunarLander-v3", "BipedalWalker-v3", "BipedalWalkerHardcore-v3", "CarRacing-v3"), True),
    Family("mujoco", "mujoco", tuple(f"{name}-v5" for name in _MUJOCO)),
    Family("minatar", "minatar", tuple(f"MinAtar/{name}-{v}" for name in GAMES for v in ("v1", "v0"))),
    Family("atari", "ale_py", tuple(f"ALE/{name}-v5" for name in _ATARI)),
    Family("brax", "brax", tuple(f"brax/{name}" for name in _BRAX)),
    Family("dmc", "dm_control", tuple(f"dm_control/{d}-{t}-v0" for d, tasks in _DMC.items() for t in tasks.split())),
    Family("dmc", "dm_control", tuple(f"dm_control_pixels/{task}-v0" for task in PLANET)),
)
STUDIES = ("accerl", "actorq", "optimizers", "precision", "quarl", "rainbow")  # modules of `studies`


# what Stable-Baselines3 and CleanRL call it -> its name here; docs/migration.md has the same
ALIASES = {
    "total_timesteps": "steps", "eval_freq": "evaluations", "n_envs": "num_envs", "net_arch": "hidden",
    "lr": "learning_rate", "num_steps": "n_steps", "update_epochs": "n_epochs", "batch_size": "num_minibatches",
    "clip_coef": "clip_range", "train_frequency": "train_freq", "target_network_frequency": "target_update_interval",
    "start_e": "exploration_initial_eps", "end_e": "exploration_final_eps", "policy_frequency": "policy_delay",
    "policy_noise": "target_policy_noise", "noise_clip": "target_noise_clip",
}  # fmt: skip


def meant(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` is but for case and hyphens, or that other libraries call so."""
    folded, plain = {_folded(name): name for name in known}, _folded(word)
    return folded.get(plain) or folded.get(ALIASES.get(plain, plain))


def nearest(word: str, known: Collection[str], kind: str) -> str:
    """The end of an error line: the nearest right spelling, else what there is."""
    folded = {_folded(name): name for name in known}
    close = [folded[name] for name in difflib.get_close_matches(_folded(word), folded, n=1, cutoff=0.65)]
    hit = meant(word, known) or next(iter(close), None)
    shown = sorted(known) if len(known) <= 40 else [*sorted(known)[:12], "..."]
    return f"did you mean {hit}?" if hit else f"{kind}: {', '.join(shown)}"


def _folded(name: str) -> str:
    return name.lower().lstrip("-").replace("-", "_")


def study(name: str) -> Any:
    """The Study of that name. Raises UsageError for an unknown one."""
    if name not in STUDIES:
        raise UsageError(f"unknown study {name!r}: {nearest(name, STUDIES, 'studies are')}")
    return import_module(f"{__package__}.studies.{name}").STUDY


def recipe(agent: str) -> Recipe:
    """The Recipe of an agent. Raises UsageError for an unknown one."""
    if agent not in AGENTS:
        raise UsageError(f"unknown agent {agent!r}: {nearest(agent, AGENTS, 'agents are')}")
    return getattr(import_module(AGENTS[agent].module), AGENTS[agent].name)


def registration(env_id: str) -> Any:
    """Gymnasium's EnvSpec of an id, as `envs.make.find` has it. Raises UsageError if there is none."""
    import gymnasium

    try:
        return make.find(env_id)
    except UsageError:
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        raise _not_installed(env_id, error) from None
    except gymnasium.error.Error:
        # some are registered only when they are asked for
        known = {*gymnasium.registry, *(name for family in FAMILIES for name in family.ids)}
        name = env_id.rpartition(":")[2]
        raise UsageError(f"unknown environment {env_id!r}: {nearest(name, known, 'some are')}") from None
    except Exception as error:  # a module that does not import may raise anything
        lost = isinstance(error, ModuleNotFoundError) and error.name == env_id.partition(":")[0].partition(".")[0]
        how = "; run this in the folder that holds that module, or put that on PYTHONPATH" if lost else ""
        raise UsageError(f"environment {env_id!r} cannot be found: {one_line(error)}{how}") from None


def family_of(env_id: str) -> Family | None:
    """The family of an environment, by its id or namespace; None for one that is not in the table."""
    space = make.namespace(env_id)
    theirs = (f for f in FAMILIES if env_id in f.ids or (space and f.ids[0].startswith(f"{space}/")))
    return next(theirs, None)


def _not_installed(env_id: str, error: Exception) -> UsageError:
    family = family_of(env_id)
    how = f"pip install 'frugalrl[{family.extra}]'" if family else one_line(error).partition(": ")[2]
    return UsageError(f"{env_id} needs a package that is not installed: {how}")


def spaces(env_id: str, options: make.EnvOptions | None = None) -> tuple[Box, Space]:
    """Observation and action space of a Gymnasium environment, as an agent is to see them.

    Observations of type uint8 and bool stay what they are, all others become float32. Raises UsageError if the
    environment cannot be made.
    """
    import gymnasium
    from gymnasium import spaces as gym_spaces

    found = registration(env_id)
    try:
        with warnings.catch_warnings():  # where warnings are errors, this one of Box2D's ends the process
            warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
            env = make.make(found, options)
    except UsageError:
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        raise _not_installed(env_id, error) from None
    except Exception as error:  # an environment that fails to start, which may raise anything
        raise UsageError(f"environment {env_id!r} cannot be made: {one_line(error)}") from None
    obs, actions = env.observation_space, env.action_space
    env.close()
    if not isinstance(obs, gym_spaces.Box):
        raise UsageError(f"{env_id} has observations of kind {type(obs).__name__}; FrugalRL takes arrays (Box)")
    dtype = obs.dtype.name if obs.dtype.name in ("uint8", "bool") else "float32"
    box = Box(tuple(obs.shape), dtype, _bound(obs.low), _bound(obs.high))
    if isinstance(actions, gym_spaces.Discrete):
        return box, Discrete(int(actions.n))
    if isinstance(actions, gym_spaces.Box):
        return box, Box(tuple(actions.shape), "float32", _bound(actions.low), _bound(actions.high))
    raise UsageError(f"{env_id} has actions of kind {type(actions).__name__}; FrugalRL takes Discrete and Box")


def _bound(bound: Any) -> Any:
    """A bound of a space as nested tuples; of images, where it is the same everywhere, as one number."""
    if bound.ndim > 1 and (bound == bound.flat[0]).all():
        return float(bound.flat[0])

    def tuples(x: Any) -> Any:
        return tuple(map(tuples, x)) if isinstance(x, list) else x

    return tuples(bound.astype(float).tolist())


def able(obs: Box, actions: Space) -> list[str]:
    """The agents that can take these observations and actions."""
    kind = "discrete" if isinstance(actions, Discrete) else "continuous"
    side = min(obs.shape[:2], default=0)

    def sees(entry: Entry) -> bool:
        return len(obs.shape) == 1 or 0 < entry.images <= side

    return [name for name, entry in AGENTS.items() if getattr(entry, kind) and sees(entry)]


def hyper_fields(recipe: Recipe) -> dict[str, Any]:
    """Name and default of everything `--hyper` may set for an agent: its Static, then its Hyper."""
    derived = ("total_steps", "steps_per_update")  # follow from --steps and the ratio of updates
    both = recipe.static._asdict() | recipe.hyper._asdict()
    return {name: value for name, value in both.items() if name not in derived}


def parse_hyper(agent: str, items: dict[str, Any]) -> dict[str, Any]:
    """Check the names and convert the values (strings from the command line, or Python values) to their field's type.

    Raises UsageError for an unknown name or a value of the wrong kind.
    """
    known = hyper_fields(recipe(agent))
    return {name: _convert(agent, name, value, known) for name, value in items.items()}


def _convert(agent: str, name: str, value: Any, known: dict[str, Any]) -> Any:
    if name not in known:
        raise UsageError(f"{agent} has no hyper-parameter {name!r}: {nearest(name, known, 'it has')}")
    whole = name in recipe(agent).static._fields and not isinstance(known[name], float)
    return _as(known[name], "--hyper", name, value, whole)


def _as(default: Any, option: str, name: str, value: Any, whole: bool) -> Any:
    """A value as the kind that `default` is, numbers as `whole` ones or not. Raises UsageError with an example."""
    try:
        if isinstance(default, tuple):
            parts = value.split(",") if isinstance(value, str) else list(value)
            if not default:  # none, or real numbers
                return tuple(float(x) for x in parts if x != "")
            result = tuple(integer(x) for x in parts)
            if not result or min(result) < 1:
                raise ValueError
            return result
        if isinstance(default, bool):
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if isinstance(default, str):
            return str(value)
        return integer(value) if whole else float(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        example = ",".join(map(str, default or (2.5, 1.0))) if isinstance(default, tuple) else default
        raise UsageError(
            f"{option} {name}={value} is not of the right kind; write for example {name}={example}"
        ) from None


# of the environment options that are numbers: the least and the greatest
_BOUNDS = {
    "frame_stack": (1, 64), "noop_max": (0, 1000), "frame_skip": (1, 64), "screen_size": (1, 512),
    "sticky_actions": (0, 1), "time_limit": (1, 2**31 - 1),
}  # fmt: skip


def parse_env_options(items: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names and convert the values of environment options (see `envs.make.EnvOptions`).

    What is for the environment itself comes as `kwargs.NAME`, or together as a dictionary `kwargs`; a string that reads
    as JSON is what it says there. Raises UsageError for an unknown name or a value of the wrong kind. Whether an
    environment has an option is found out when it is made.
    """
    known = make.EnvOptions._field_defaults | {"sticky_actions": 0.25, "time_limit": 1000}
    parsed: dict[str, Any] = {}
    for name, value in items.items():
        if name == "kwargs" and isinstance(value, Mapping):
            parsed.setdefault("kwargs", {}).update({key: _json(key, each) for key, each in value.items()})
        elif name.startswith("kwargs.") and name != "kwargs.":
            parsed.setdefault("kwargs", {})[name.removeprefix("kwargs.")] = _json(name, value)
        elif name in ("kwargs", "kwargs."):
            raise UsageError(f"--env-option {name}={value} is not of the right kind; write kwargs.NAME=VALUE")
        elif name not in known:
            raise UsageError(f"there is no environment option {name!r}: {nearest(name, known, 'there are')}")
        else:
            parsed[name] = _as(known[name], "--env-option", name, value, isinstance(known[name], int))
            low, high = _BOUNDS.get(name, (parsed[name],) * 2)
            if not low <= parsed[name] <= high:
                raise UsageError(f"--env-option {name}={value} must be from {low} to {high}")
    return parsed


def _json(name: str, value: Any) -> Any:
    """What a string says as JSON, else the string itself; what is no string must be something that JSON can hold."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise UsageError(f"the environment option {name} must be a number, text, list or dictionary") from None
    try:
        return files.loads(text)
    except ValueError:
        return value


def integer(value: Any) -> int:
    """An int from a number or what reads as one, 1e5 too. Raises ValueError, TypeError or OverflowError."""
    number = float(value)
    if number != int(number) or isinstance(value, bool):
        raise ValueError
    return int(number)


def defaults(agent: str, env_id: str) -> tuple[int, dict[str, Any]]:
    """Training steps and hyper-parameters for a pair."""
    family = (agent, make.namespace(env_id))
    steps, changed = DEFAULTS.get((agent, env_id)) or DEFAULTS.get(family) or (STEPS, {})
    return steps, hyper_fields(recipe(agent)) | changed


def has_twin(env_id: str, env_options: Mapping[str, Any] | None = None) -> bool:
    """Whether there is a JAX environment that does the same, with these options."""
    return twins.has_twin(env_id) and not twins.unknown(env_id, make.options_for(env_id, env_options))
