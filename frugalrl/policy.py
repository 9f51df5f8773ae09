"""A trained policy as files and as an object that acts: needs neither JAX nor the training run.

A policy folder holds `policy.json` (network, spaces, what the outputs mean) and `seed-K.npz` (the weights of each
training seed). A policy of another structure that was trained to act as this one does, `half` say, is a policy folder
of that name within it. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import catalog, distributions, networks
from .distributions import draw
from .envs.make import check_module, options_for
from .errors import BadFile, RunFailed, UsageError, call, one_line
from .evaluate import HELD_OUT, Episodes, on_gymnasium
from .monitor.files import NEW, READY, read_json, settle, together
from .monitor.kinds import check, number, string, whole
from .types import Box, Discrete, Linear, Session, Space

HEADS = {
    head.__name__: head
    for head in (
        distributions.epsilon_greedy,
        distributions.distributional_greedy,
        distributions.categorical,
        distributions.normal,
        distributions.tanh_normal,
        distributions.squashed_normal,
        distributions.clipped_normal,
    )
}
LAYERS = {
    layer.__name__: layer
    for layer in (
        networks.Dense,
        networks.Conv,
        networks.LayerNorm,
        networks.MaxPool,
        networks.Relu,
        networks.Flatten,
        networks.Scale,
        networks.Residual,
    )
}


def _size(x: Any) -> bool:
    return whole(x) and 0 < x <= LARGEST


LARGEST = 2**24  # observation, layer or filter: nothing that is larger is made, to find out whether it fits
KIND = {
    **dict.fromkeys(("agent", "env", "head"), (string,)),
    "seeds": (whole,), "knobs": ({},),
    "obs": ({"shape": ([(_size,)],)},), "actions": ({"n": _size, "shape": [(_size,)]},),
}  # fmt: skip
LAYER = dict.fromkeys(("features", "kernel", "stride", "window"), _size) | dict.fromkeys(("gain", "eps", "by"), number)


class Card(NamedTuple):
    """What a policy is, apart from its weights."""

    agent: str
    env: str
    obs: Box
    actions: Space
    layers: tuple
    head: str
    knobs: dict[str, Any]  # of greedy actions: numbers, and lists of them
    env_options: dict[str, Any] | None = None  # of the environment it was trained on; see `envs.make`


def layers_to_json(layers: tuple) -> list:
    def one(layer) -> list:
        fields = layers_to_json(layer.body) if isinstance(layer, networks.Residual) else layer._asdict()
        return [type(layer).__name__, fields]

    return [one(layer) for layer in layers]


def layers_from_json(items: list) -> tuple:
    def one(name: str, fields):
        if name == "Residual":
            return networks.Residual(layers_from_json(fields))
        check(fields, LAYER)
        return LAYERS[name](**fields)

    return tuple(one(name, fields) for name, fields in items)


def write(folder: Path, card: Card, weights: list[tuple[Linear, ...]]) -> None:
    """Write a policy folder; `weights` holds one network for each training seed. Files are replaced all or none."""
    actions = card.actions._asdict() | {"kind": type(card.actions).__name__}
    described = card._asdict() | {
        "obs": card.obs._asdict(),
        "actions": actions,
        "layers": layers_to_json(card.layers),
        "seeds": len(weights),
    }
    with together(folder) as new:
        for k, params in enumerate(weights):
            arrays = {
                f"{name}{i}": np.asarray(x) for i, layer in enumerate(params) for name, x in layer._asdict().items()
            }
            with open(new / f"seed-{k}.npz", "wb") as f:
                np.savez(f, allow_pickle=False, **arrays)
        (new / "policy.json").write_text(json.dumps(described, indent=1, default=float))


def _box(fields: dict) -> Box:
    def tuples(x) -> Any:
        return tuple(tuples(y) for y in x) if isinstance(x, list) else x

    return Box(**{name: tuples(x) for name, x in fields.items()})


def read(folder: Path) -> tuple[Card, list[tuple[Linear, ...]]]:
    """Read a policy folder. Raises BadFile where there is none or it is damaged."""
    try:
        settle(folder)
    except OSError as error:
        raise BadFile(f"{folder} holds newer files that cannot be put in place ({error.strerror or error})") from None
    path = folder / "policy.json"
    found = read_json(path, KIND)
    if found is None:
        if (folder / "config.json").exists():
            raise BadFile(f"{folder} holds no policy yet; go on with: {call('resume', folder)}")
        raise BadFile(f"{folder} holds no policy (no policy.json); give the folder of a `frugal train`")
    check_module(found["env"], path)
    try:
        seeds = found.pop("seeds")
        actions = dict(found["actions"])
        space = Discrete(actions["n"]) if actions.pop("kind") == "Discrete" else _box(actions)
        layers = layers_from_json(found["layers"])
        options = catalog.parse_env_options(found.get("env_options") or {}) or None
        read = {"obs": _box(found["obs"]), "actions": space, "layers": layers, "env_options": options}
        card = Card(**found | read)
        shapes = [shape for _, shape in networks.weighted(layers, card.obs.shape)]
        outputs = networks.out_features(layers, card.obs.shape)
        if prod(card.obs.shape) > LARGEST or outputs > LARGEST:
            raise ValueError(f"{outputs} outputs for observations of shape {card.obs.shape}")
        _within(HEADS[card.head](np.zeros((1, outputs), np.float32), card.knobs).mode(), card.actions)
        np.zeros(card.obs.shape, card.obs.dtype)
        numbers = range(seeds)
        if not shapes or not numbers:
            raise ValueError("it has no weights")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise BadFile(
            f"{path} is damaged or not from FrugalRL ({one_line(error)}); restore it or train again"
        ) from None
    return card, [_weights(folder / f"seed-{k}.npz", shapes) for k in numbers]


def _weights(path: Path, shapes: list[tuple[int, ...]]) -> tuple[Linear, ...]:
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            weights = tuple(Linear(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(len(shapes)))
    except Exception as error:  # archives and arrays that are damaged raise many kinds
        raise BadFile(f"{path} is damaged or missing ({one_line(error)}); restore it or train again") from None
    for found, shape in zip(weights, shapes, strict=True):
        if found.w.shape != shape or found.b.shape != shape[-1:] or {x.dtype.name for x in found} != {"float32"}:
            raise BadFile(f"{path} does not fit policy.json: a layer is {found.w.shape}, expected {shape} in float32")
    return weights


def _within(actions: Any, space: Space) -> Any:
    """Those of a Box within its bounds."""
    return actions if isinstance(space, Discrete) else np.clip(actions, space.low, space.high).astype(space.dtype)


class Actor:
    """A policy that acts on NumPy observations; `weights` holds one network for each training seed."""

    def __init__(self, card: Card, weights: list[tuple[Linear, ...]]):
        self.card, self.weights = card, weights
        self.sessions: dict[tuple[int, int], Session] = {}  # by batch and seed: an engine's sessions are of fixed batch

    def session(self, batch: int, seed: int = 0) -> Session:
        """The network of a training seed in LiteRT, at fp32, for batches of this size."""
        from .levers.compress.engines import engine

        if (batch, seed) not in self.sessions:
            session = engine("litert").build(self.card.layers, self.card.obs, batch, "fp32")
            session.load(self.weights[seed])
            self.sessions[batch, seed] = session
        return self.sessions[batch, seed]

    def predict(self, obs, *, seed: int = 0, deterministic: bool = True, rng: np.random.Generator | None = None) -> Any:
        """The action for one observation, or the actions for a batch of them.

        `seed` picks which training seed's policy acts; with `deterministic=False` actions are sampled, from `rng`.
        Those of a Box lie within its bounds. Raises ValueError for observations of another shape.
        """
        shape, obs = self.card.obs.shape, np.asarray(obs, self.card.obs.dtype)
        if obs.shape[-len(shape) :] != shape or obs.ndim not in (len(shape), len(shape) + 1):
            raise ValueError(
                f"{self.card.env} has observations of shape {shape}, or [batch, ...] of them; got {obs.shape}"
            )
        batch = obs if obs.ndim > len(shape) else obs[None]
        dist = HEADS[self.card.head](self.session(len(batch), seed).run(batch), self.card.knobs)
        actions = dist.mode() if deterministic else dist.sample(draw(dist, rng or np.random.default_rng()))
        actions = _within(actions, self.card.actions)
        return actions if obs.ndim > len(shape) else actions[0]

    def play(
        self, episodes: int, *, seed: int = 0, first: int = HELD_OUT, parallel: int = 20, frames: list | None = None
    ) -> Episodes:
        """Greedy episodes of a training seed's policy on the environment it was trained on.

        Episode i is reset with `first` + i, up to `parallel` are played side by side, and the first is rendered into
        `frames`, if that is a list. Raises RunFailed if the environment fails, and UsageError if it cannot be made.
        """
        card, session = self.card, self.session(min(episodes, parallel), seed)
        try:
            return on_gymnasium(
                lambda obs: HEADS[card.head](session.run(obs), card.knobs).mode(), card.env, episodes, seed=first,
                parallel=min(episodes, parallel), options=options_for(card.env, card.env_options),
                obs_dtype=card.obs.dtype, frames=frames,
            )  # fmt: skip
        except UsageError:
            raise
        except Exception as error:  # out of the environment, which may raise anything
            raise RunFailed(f"{card.env} failed: {one_line(error)}", None) from error

    def rounded(self, bits: int) -> Actor:
        """This policy with its weights rounded to so many bits, 2 to 32, after training: `quantise.rounded`."""
        from .levers.compress import quantise

        to_bits = quantise.rounded(bits)
        return Actor(self.card, [quantise.through(to_bits, weights) for weights in self.weights])

    def save(self, folder: str | Path) -> Path:
        """Write a policy folder that `frugalrl.load` reads."""
        write(Path(folder), self.card, self.weights)
        return Path(folder)


def load(folder: str | Path, structure: str = "") -> Actor:
    """The policy of a run folder or policy folder, ready to `predict`: the full one, or that of another structure."""
    return Actor(*read(_policy_folder(folder) / structure))


def structures(folder: str | Path) -> list[str]:
    """The names of the other structures that a run folder or policy folder holds."""
    there = (path.parent.name for path in _policy_folder(folder).glob("*/policy.json"))
    return sorted(name for name in there if name not in (NEW, READY))


def _policy_folder(folder: str | Path) -> Path:
    """That of a run folder, or `folder` itself."""
    return Path(folder, "policy") if Path(folder, "policy").is_dir() else Path(folder)
