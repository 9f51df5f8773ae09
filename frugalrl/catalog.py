"""The one table of what the command line knows by name: agents, environments, and defaults that learn."""

from __future__ import annotations

import difflib
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from .envs.twins import TWINS
from .errors import UsageError, one_line
from .types import Box, Discrete, Space


class Recipe(NamedTuple):
    module: str  # holds Static, Hyper and assemble
    summary: str
    continuous: bool = False  # takes continuous actions
    discrete: bool = True  # takes discrete actions


AGENTS = {
    "dqn": Recipe("frugalrl.agents.dqn", "Q-learning with replay and a target network; discrete actions"),
    "sac": Recipe("frugalrl.agents.sac", "entropy beside return, twin critics; continuous and discrete actions", True),
    "td3": Recipe("frugalrl.agents.td3", "deterministic actor, twin critics; continuous actions", True, False),
    "ddpg": Recipe("frugalrl.agents.ddpg", "deterministic actor, one critic; continuous actions", True, False),
    "d4pg": Recipe("frugalrl.agents.d4pg", "DDPG with a distribution for a critic; continuous actions", True, False),
}

# Squared error, because Huber's bounded gradient lets the rare terminal step lose to the many before it, and values
# grow
# without end; long returns, because one step at a time 100 steps of value take 100 target updates.
_CONTROL = {"loss": "mse", "learning_rate": 5e-4, "double": True, "n_step": 10}

_PENDULUM = {"hidden": (64, 64), "batch_size": 128, "learning_rate": 1e-3}
# as Stable-Baselines3's zoo has them for MuJoCo; not measured here yet
_MUJOCO_STEPS, _MUJOCO_STARTS = 1_000_000, {"learning_starts": 10_000}

# of each agent and environment: training steps, and what differs from the agent's own defaults
DEFAULTS: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {
    ("dqn", "CartPole-v1"): (50_000, _CONTROL),
    ("dqn", "Acrobot-v1"): (100_000, _CONTROL),
    # finds the goal in about half of the seeds only: nothing but chance leads there
    ("dqn", "MountainCar-v0"): (
        200_000,
        _CONTROL
        | {"hidden": (128, 128), "learning_rate": 1e-3, "target_update_interval": 500, "exploration_fraction": 0.5},
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
}
STEPS = 100_000  # of a pair that is not in the table


class Family(NamedTuple):
    """Environments that come with one extra."""

    extra: str  # of the package; "" for the base install
    module: str  # whose import shows that the extra is there
    ids: tuple[str, ...]


FAMILIES = (
    Family("", "gymnasium", ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1")),
    Family("box2d", "Box2D", ("LunarLander-v3",)),
)
# promised by the design, not there yet
LATER = ("bf16", "fp16", "half", "half+int8", "auto", "ray", "vtrace", "retrace", "tree-backup", "wandb", "trackio")
LATER_COMMANDS = ("pbt", "compare", "study", "studies", "watch")
LATER_OPTIONS = ("--lockstep", "--ray-address")


def nearest(word: str, known, kind: str) -> str:
    """The end of an error line: the nearest right spelling, else what there is."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    folded = {k.lower(): k for k in known}
    hit = folded.get(word.lower()) or (close[0] if close else None)
    return f"did you mean {hit}?" if hit else f"{kind}: {', '.join(sorted(known)[:12])}"


def recipe(agent: str) -> ModuleType:
    """The module of an agent. Raises UsageError for an unknown one."""
    if agent not in AGENTS:
        raise UsageError(f"unknown agent {agent!r}: {nearest(agent, AGENTS, 'agents are')}")
    return import_module(AGENTS[agent].module)


def registration(env_id: str) -> Any:
    """Gymnasium's EnvSpec of an id; "module:Name-v0" imports the module that registers it first.

    Raises UsageError if there is none.
    """
    import gymnasium

    module, _, name = env_id.rpartition(":")
    try:
        if module:
            import_module(module)
        return gymnasium.spec(name)
    except gymnasium.error.Error:
        raise UsageError(f"unknown environment {env_id!r}: {nearest(name, gymnasium.registry, 'some are')}") from None
    except Exception as error:  # a module that does not import may raise anything
        raise UsageError(f"environment {env_id!r} cannot be found: {one_line(error)}") from None


def spaces(env_id: str) -> tuple[Box, Space]:
    """Observation and action space of a Gymnasium environment. Raises UsageError if it cannot be made."""
    import gymnasium
    from gymnasium import spaces as gym_spaces

    found = registration(env_id)
    try:
        env = gymnasium.make(found)
    except gymnasium.error.DependencyNotInstalled as error:
        extra = next((f.extra for f in FAMILIES if env_id in f.ids), None)
        how = f"pip install 'frugalrl[{extra}]'" if extra else str(error).splitlines()[0]
        raise UsageError(f"{env_id} needs a package that is not installed: {how}") from None
    except Exception as error:  # an environment that fails to start, which may raise anything
        raise UsageError(f"environment {env_id!r} cannot be made: {one_line(error)}") from None
    obs, actions = env.observation_space, env.action_space
    env.close()
    if not isinstance(obs, gym_spaces.Box):
        raise UsageError(f"{env_id} has observations of kind {type(obs).__name__}; FrugalRL takes arrays (Box)")
    dtype = "uint8" if obs.dtype.name == "uint8" else "float32"
    box = Box(tuple(obs.shape), dtype, tuple(obs.low.ravel().tolist()), tuple(obs.high.ravel().tolist()))
    if isinstance(actions, gym_spaces.Discrete):
        return box, Discrete(int(actions.n))
    if isinstance(actions, gym_spaces.Box):
        low, high = actions.low.ravel().tolist(), actions.high.ravel().tolist()
        return box, Box(tuple(actions.shape), "float32", tuple(low), tuple(high))
    raise UsageError(f"{env_id} has actions of kind {type(actions).__name__}; FrugalRL takes Discrete and Box")


def hyper_fields(module: ModuleType) -> dict[str, Any]:
    """Name and default of everything `--hyper` may set for an agent: its Static, then its Hyper."""
    derived = ("total_steps", "steps_per_update")  # follow from --steps and the ratio of updates
    both = module.Static._field_defaults | module.Hyper._field_defaults
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
    default = known[name]
    try:
        if isinstance(default, tuple):
            parts = value.split(",") if isinstance(value, str) else list(value)
            result = tuple(_whole(x) for x in parts)
            if not result or min(result) < 1:
                raise ValueError
            return result
        if isinstance(default, bool):
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if isinstance(default, str):
            return str(value)
        if name in recipe(agent).Static._fields:
            return _whole(value)
        return float(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        example = ",".join(map(str, default)) if isinstance(default, tuple) else default
        raise UsageError(
            f"--hyper {name}={value} is not of the right kind; write for example {name}={example}"
        ) from None


def _whole(value: Any) -> int:
    number = float(value)
    if number != int(number) or isinstance(value, bool):
        raise ValueError
    return int(number)


def defaults(agent: str, env_id: str) -> tuple[int, dict[str, Any]]:
    """Training steps and hyper-parameters for a pair."""
    steps, changed = DEFAULTS.get((agent, env_id), (STEPS, {}))
    return steps, hyper_fields(recipe(agent)) | changed


def has_twin(env_id: str) -> bool:
    return env_id in TWINS
