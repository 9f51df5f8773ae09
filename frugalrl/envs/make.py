"""Makes the real environments: one function for actors, evaluation, videos and the description of spaces.

Ids that Gymnasium does not know by itself are registered when one of them is asked for, and not before: `ALE/...` by
ale-py, `MinAtar/...`, `dm_control/...` and `brax/...` by the adapters beside this file. It does not import JAX,
because actor processes do not, save those that step Brax. Wrappers are Gymnasium's and keep no statistics:
normalisation belongs to the agent's state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, get_origin, get_type_hints

import numpy as np

from ..errors import BadFile, UsageError

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec


class EnvOptions(NamedTuple):
    """How an environment is set up. The defaults of a family are in `DEFAULTS`.

    Observations, actions and dynamics are the same in training and in evaluation; `clip_reward`, `timeout_as_terminal`
    and `terminal_on_life_loss` hold in training only.
    """

    frame_stack: int = 1  # newest observations, joined along the last axis, the oldest first
    time_limit: int | None = None  # steps after which an episode is cut off; None: the environment's own, if any
    clip_reward: bool = False  # to -1 .. 1, which of whole rewards keeps the sign (Mnih et al. 2015)
    # a cut-off counts as an end, after which no value is expected (against it: Pardo et al. 2018, arXiv 1712.00378)
    timeout_as_terminal: bool = False
    flatten: bool = False  # observations, of a dictionary too, as one vector
    rescale_actions: bool = False  # Box actions, from -1 to 1
    sticky_actions: float | None = None  # chance to repeat an action, of ALE (its v5: 0.25) and MinAtar (0.1)
    kwargs: dict[str, Any] | None = None  # to the environment itself, {"continuous": False} of CarRacing-v3, say

    # of ALE only; the protocol is that of Machado et al. 2018 (arXiv 1709.06009)
    noop_max: int = 30  # an episode begins with 1 to so many frames without an action; 0 for none
    frame_skip: int = 4  # frames in a step; the last two are joined by their maximum
    screen_size: int = 84
    grayscale: bool = True  # one channel a frame, else three
    full_action_space: bool = False  # all 18 actions instead of those that do something in this game
    terminal_on_life_loss: bool = False  # the next episode is a new game then
    backend: str = "ale"  # steps training environments: ale-py's native code, "envpool", or "python" one by one


DEFAULTS = {  # by namespace; EnvOptions() for the others
    "ALE": EnvOptions(frame_stack=4, clip_reward=True),
    "dm_control_pixels": EnvOptions(frame_stack=3),
}
_ALE_ONLY = EnvOptions._fields[EnvOptions._fields.index("noop_max") :]
ATARI_FRAMES = 108_000  # after which ale-py cuts its v5 off: half an hour of play, 27,000 steps


def namespace(env_id: str) -> str:
    """The part before the slash: "ALE" of "ALE/Pong-v5", "" of "CartPole-v1"."""
    return env_id.rpartition(":")[2].rpartition("/")[0]


def options_for(env_id: str, changed: Mapping[str, Any] | None = None) -> EnvOptions:
    """The default options of an environment, but for those that are `changed`."""
    return DEFAULTS.get(namespace(env_id), EnvOptions())._replace(**(changed or {}))


Environment = str | Callable[..., Any]  # as a caller gives it; `name_of` says what may be called


def name_of(env: Environment) -> str:
    """The id of an environment: a string as it is, and "module:Name" of a class or function of a module.

    Raises UsageError for what another process could not import by such a name: an instance, a lambda, and whatever is
    of a function, a class, a script or a notebook.
    """
    if isinstance(env, str):
        return env
    module, name = (str(getattr(env, key, None)) for key in ("__module__", "__qualname__"))
    if callable(env) and module != "__main__" and getattr(sys.modules.get(module), name, None) is env:
        return f"{module}:{name}"
    raise UsageError(
        f"the environment is given by its id, or as a class or function of a module, which other processes import; got "
        f"{env!r}: put a class, or a function that makes one, into m.py beside the script, and give m.NAME, with its "
        "arguments as env_options={'kwargs': {...}}"
    )


def find(env_id: str) -> EnvSpec:
    """Gymnasium's EnvSpec of an id; "module:Name-v0" imports the module that registers it first, and "module:Name" is
    what has that name there, of which `_makes` must be true.

    Raises gymnasium.error.DependencyNotInstalled where a package is needed to know, another gymnasium.error.Error for
    an unknown id, UsageError for a name of something else, and what the module raises.
    """
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    module, _, name = env_id.rpartition(":")
    found = getattr(import_module(module), name, None) if module else None
    if found is not None:
        if not _makes(found):
            raise UsageError(
                f"{env_id} is neither a class that inherits gymnasium.Env nor a function that says that it returns "
                f"one: def {name}() -> gymnasium.Env"
            )
        return EnvSpec(env_id, entry_point=env_id)
    match namespace(name):
        case "ALE":
            ale = needed("ale_py", "atari")  # registers its games when it is imported
            ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)  # no greeting
        case "MinAtar":
            from .minatar import register

            register()
        case "dm_control" | "dm_control_pixels":
            from .dm_control import register

            register()
        case "brax":
            from .brax import register

            register()
    return gymnasium.spec(name)


def _makes(found: Any) -> bool:
    """Whether it is a class of environments, or a function that says so of what it returns.

    Files name it, and what they name is called: it must be nothing else.
    """
    import gymnasium

    if isinstance(found, FunctionType):
        try:
            found = get_type_hints(found).get("return")
        except Exception:  # of names that are there for type checkers only, or none
            return False
    found = get_origin(found) or found
    return isinstance(found, type) and issubclass(found, gymnasium.Env)


def check_module(env_id: str, file: Path) -> None:
    """Raises BadFile if the module of an id that was read from `file` came with it, by all appearances.

    That is one which lies in the folder of the run or policy, or in a package around it: what was downloaded to be
    looked at must not run code of its own. A module that was given on the command line, or imported by the caller, is
    not asked about; one beside the folders of its runs is found as always. Nothing is imported here.
    """
    module = env_id.rpartition(":")[0]
    if not module or module in sys.modules:
        return
    folder = file.resolve().parent
    while any((folder.parent / name).is_file() for name in ("config.json", "policy.json")):
        folder = folder.parent
    for place, package in _places(module):
        if place.is_relative_to(folder) or (package and folder.is_relative_to(place)):
            raise BadFile(
                f"{file} has the environment {env_id!r}, whose module came with it, in {place}: if you trust it, move "
                "it to the folder that you work in, out of all that holds the run"
            )


def _places(module: str) -> Iterator[tuple[Path, bool]]:
    """Where a module and the packages around it lie: a file, or the folder of a package, and whether it is that."""
    parts, path = module.split("."), None
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        try:
            spec = find_spec(name) if path is None else PathFinder.find_spec(name, path)
        except (ImportError, ValueError, AttributeError):  # of a name that is none: to import it says so
            return
        if spec is None:
            return
        path = spec.submodule_search_locations
        if spec.origin is not None and spec.has_location and path is None:
            yield Path(spec.origin).resolve(), False
        yield from ((Path(place).resolve(), True) for place in path or ())
        if path is None:
            return


def needed(module: str, extra: str) -> Any:
    """Import a module of an extra. Raises gymnasium.error.DependencyNotInstalled with the command that installs it."""
    import gymnasium

    try:
        return import_module(module)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, but something that it needs is not
        how = f"{module.partition('.')[0]} is not installed: pip install 'frugalrl[{extra}]'"
        raise gymnasium.error.DependencyNotInstalled(how) from None


def make(
    env: str | EnvSpec, options: EnvOptions | None = None, *, training: bool = False, render_mode: str | None = None
) -> gymnasium.Env:
    """The environment of an id or EnvSpec, wrapped as `options` say (by default those of its family).

    Actions of a Box are clipped to its bounds. Rewards are not clipped, and cut-offs no ends, whatever the options say:
    that is for `lesson`. Raises what `find` and the environment raise, and UsageError for options that do not apply.
    """
    import gymnasium
    from gymnasium import spaces, wrappers
    from gymnasium.envs.registration import load_env_creator

    spec = find(env) if isinstance(env, str) else env
    o = options_for(spec.id) if options is None else options
    kwargs: dict[str, Any] = (
        own_options(spec.id, o)
        | ({"max_episode_steps": o.time_limit} if o.time_limit else {})
        | (o.kwargs or {})
        | ({"render_mode": render_mode} if render_mode else {})
    )
    if str(spec.entry_point).startswith("gymnasium.envs.mujoco."):
        with suppress(ImportError):  # Gymnasium says what is missing
            mujoco = import_module("mujoco")
            if mujoco.get_mju_user_warning() is None:
                mujoco.set_mju_user_warning(mujoco_warns)
    if o.kwargs and spec.id == spec.entry_point and not isinstance(load_env_creator(spec.id), type):
        raise UsageError(f"{spec.id} is a function, which is called without kwargs: leave them out, or give a class")
    made = gymnasium.make(spec, **kwargs)
    if namespace(spec.id) == "ALE":
        needed("cv2", "atari").setNumThreads(1)  # or its threads fight the other actors for the cores
        made = wrappers.AtariPreprocessing(
            made,
            noop_max=o.noop_max,
            frame_skip=o.frame_skip,
            screen_size=o.screen_size,
            grayscale_obs=o.grayscale,
            grayscale_newaxis=True,
            terminal_on_life_loss=training and o.terminal_on_life_loss,
        )
    if o.flatten:
        made = wrappers.FlattenObservation(made)
    if o.rescale_actions:
        made = wrappers.RescaleAction(made, np.float32(-1), np.float32(1))
    if isinstance(made.action_space, spaces.Box) and made.action_space.is_bounded("both"):
        # MuJoCo's tasks charge for what lies beyond the bounds, and a normal that learns that late never comes back
        low, high = made.action_space.low, made.action_space.high
        made = wrappers.TransformAction(made, lambda action: np.clip(action, low, high), made.action_space)
    if o.frame_stack != 1:
        made = _stacked(made, o.frame_stack)
    return made


LESSON = ("clip_reward", "timeout_as_terminal")  # the options that `lesson` is for


def lesson(o: EnvOptions, reward: Any, terminated: Any, truncated: Any) -> tuple[Any, Any, Any]:
    """Of steps, what an agent learns from: rewards, and whether they terminated or truncated their episodes.

    Arrays of NumPy or of JAX. Returns are counted before.
    """
    if o.clip_reward:
        reward = reward.clip(-1, 1)
    if o.timeout_as_terminal:
        terminated, truncated = terminated | truncated, truncated & False
    return reward, terminated, truncated


def own_options(env_id: str, o: EnvOptions) -> dict[str, Any]:
    """What the environment itself is told. Raises UsageError for an option that it does not have."""
    family, kwargs = namespace(env_id), {}
    for name in () if family == "ALE" else _ALE_ONLY:
        if getattr(o, name) != EnvOptions._field_defaults[name]:
            raise UsageError(f"the option {name} is of ALE environments, and {env_id} is none: leave it out")
    if o.sticky_actions is not None:
        names = {"ALE": "repeat_action_probability", "MinAtar": "sticky_action_prob"}
        if family not in names:
            raise UsageError(f"the option sticky_actions is of ALE and MinAtar, and {env_id} is neither: leave it out")
        kwargs[names[family]] = o.sticky_actions
    if family == "ALE":
        if o.time_limit is not None:
            raise UsageError(f"{env_id} counts frames: use kwargs.max_num_frames_per_episode instead of time_limit")
        # the wrapper reads the screen itself; the environment's own grey copy costs a third of its coloured one
        kwargs |= {"frameskip": 1, "obs_type": "grayscale" if o.grayscale else "rgb"}
        kwargs["full_action_space"] = o.full_action_space
    return kwargs


def _stacked(env: gymnasium.Env, size: int) -> gymnasium.Env:
    """The newest `size` observations [..., channels] as one [..., size * channels]; a reset repeats the first."""
    from gymnasium import spaces, wrappers

    one, join = env.observation_space, partial(_join, size=size)
    if not isinstance(one, spaces.Box) or not one.shape:
        raise UsageError(f"frame_stack={size} needs observations that are arrays, got {one}")
    space = spaces.Box(*(join(np.stack([bound] * size)) for bound in (one.low, one.high)), dtype=one.dtype)  # type: ignore[arg-type]
    return wrappers.TransformObservation(wrappers.FrameStackObservation(env, size), join, space)


def _join(frames: np.ndarray, size: int) -> np.ndarray:
    """[size, ..., channels] to [..., size * channels]."""
    moved = np.moveaxis(frames, 0, -2)
    return moved.reshape(*moved.shape[:-2], size * moved.shape[-1])


@cache
def mujoco_warns(text: str) -> None:
    """Takes MuJoCo's warnings to standard error, each once.

    Without a listener they go to MUJOCO_LOG.TXT in whatever folder the process runs in. Those about deprecated
    attributes concern the authors of a model, and would come each time that an environment is made.
    """
    if "is deprecated" not in text:
        print(f"MuJoCo: {text.strip()}", file=sys.stderr)


def has_time_limit(spec: EnvSpec) -> bool:
    """Whether episodes are cut off by the environment itself: by Gymnasium, or by ALE or dm_control within."""
    # dm_control's lqr runs until it has settled
    return spec.max_episode_steps is not None or (
        namespace(spec.id) in ("ALE", "dm_control", "dm_control_pixels") and "/lqr-" not in spec.id
    )
