"""A trained policy as a file for another program, with a model card beside it.

The card says what the file is, what it costs and how well it plays beside the full policy. All of its numbers are
measured here, of the file itself, in the runtime that will run it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np

from ... import catalog, policy
from ...envs.make import find, options_for
from ...errors import UsageError, one_line
from ...evaluate import HELD_OUT, episode_cap, on_gymnasium
from ...monitor import receipt
from ...monitor.files import plain, read_json
from ...monitor.kinds import whole
from ...monitor.machine import hardware, versions
from ...monitor.quality import divergence
from ...networks import weighted
from ...statistics import bootstrap
from ...types import Discrete, Session
from . import engines
from .card import markdown
from .export import FORMATS, MODES, Call, Weights, in_mode, model, together

EPISODES = 10
BATCHES = (1, 8)
SECONDS = 0.3  # to measure the calls of one batch size in
MOST = 512  # observations of play to compare the policies on
STRUCTURES = ("half",)  # those that `frugal train --actors` can train
# What greedy play leaves out: without some chance of another action, two policies that differ once are infinitely far
# apart. Knobs that are 0 are these when the divergence is taken.
EXPLORING = {"epsilon": 0.05, "noise": 0.1}
PACKAGES = ("onnx", "onnxruntime")  # beside those that every receipt names


class Play(NamedTuple):
    returns: list[float]  # of each episode
    observations: np.ndarray  # [at most MOST, ...], evenly spread over all of the play


def deploy(
    source: str | Path,
    format: str,
    mode: str = "fp32",
    out: str | Path | None = None,
    episodes: int = EPISODES,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[Path, Path]:
    """Writes the policy of a run folder or policy folder, its first training seed's, and FILE.md, the model card.

    Returns the paths of both; they appear together or not at all. `mode` is a number format, "int8", or another
    structure that the run has trained, with or without one: "half", "half+int8". The full policy and the file each play
    `episodes` greedy episodes on the held-out seeds; an environment that cannot be played is named in the card. Takes
    about a second and the time of the play. Raises UsageError for a wrong call, and BadFile for a damaged policy.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format!r} does not exist: {catalog.nearest(format, FORMATS, 'there are')}")
    if episodes < 0:
        raise UsageError(f"--episodes must not be negative, got {episodes}")
    full = policy.load(source)
    structure, number = parts(source, mode)
    out = _place(source, format, out)
    small = policy.load(source, structure) if structure else full
    (layers, obs, weights), card = (small.card.layers, small.card.obs, small.weights[0]), full.card
    try:
        data = model(layers, obs, weights, format, number, {"agent": card.agent, "env": card.env})
    except ValueError as error:  # a package that is not installed, or a layer that the format lacks
        raise UsageError(str(error)) from None
    report(f"playing {episodes} episodes of {card.env} with the full policy and as many with the file")
    wall, cpu = perf_counter(), process_time()
    latency = [timing for batch in BATCHES for timing in _latency(full, small, format, number, batch)]
    share = (process_time() - cpu) / (perf_counter() - wall)
    facts = {
        "agent": card.agent, "env": card.env, "env_options": options_for(card.env, card.env_options)._asdict(),
        **_origin(Path(source), full),
        "file": {
            "name": out.name, "format": format, "mode": mode, "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(), "written": datetime.now(UTC).date().isoformat(),
        },
        "observations": obs._asdict(), "actions": {"kind": type(card.actions).__name__} | card.actions._asdict(),
        "head": small.card.head, "knobs": small.card.knobs,
        "full": _sized(layers=card.layers, shape=card.obs.shape, weights=in_mode(full.weights[0], "fp32")),
        "compressed": _sized(layers=layers, shape=obs.shape, weights=in_mode(weights, number)),
        "latency": latency, "share_of_a_core": share,
        "play": compared(full, FORMATS[format].open(data), episodes, small.card.knobs),
        "packages": environment_packages(card.env),
        "versions": versions() | {name: _version(name) for name in PACKAGES}, "hardware": hardware(),
    }  # fmt: skip
    beside = out.with_name(f"{out.name}.md")
    try:
        together({beside: markdown(plain(facts)).encode(), out: data})
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror or error}") from None
    return out, beside


def parts(source: str | Path, mode: str) -> tuple[str, str]:
    """The structure, "" for the full network, and the number format of a mode. Raises UsageError for an unknown one."""
    first, plus, number = mode.partition("+")
    structure, number = ("", mode) if first in MODES else (first, number if plus else "fp32")
    there = policy.structures(source)
    if number in MODES and (mode == number or structure in there):
        return structure, number
    if structure in STRUCTURES and number in MODES:
        raise UsageError(f"--mode {mode}: {source} has no policy of that structure; train one with --actors {mode}")
    known = [*MODES, *(f"{name}{more}" for name in there for more in ("", *(f"+{m}" for m in MODES[1:])))]
    raise UsageError(f"--mode {mode!r} does not exist: {catalog.nearest(mode, known, 'there are')}")


def _place(source: str | Path, format: str, out: str | Path | None) -> Path:
    """Where the file goes, looked at before anything takes time."""
    path = Path(source, f"policy{FORMATS[format].suffix}") if out is None else Path(out)
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; give a file")
    return path


def _origin(source: Path, full: policy.Actor) -> dict[str, Any]:
    """What is known of the training; None where there is only a policy folder."""
    made, config = receipt.read(source / "receipt.json") or {}, read_json(source / "config.json", {"seed": whole}) or {}
    trained = {name: made.get(name) for name in ("steps", "runtime")}
    return trained | {"seeds": len(full.weights), "seed": config.get("seed")}


def _sized(layers: tuple, shape: tuple[int, ...], weights: Weights) -> dict[str, Any]:
    """Parameters and bytes of each layer that has weights, and of all."""
    each = [
        {
            "layer": type(layer).__name__,
            "weights": of, "parameters": int(np.prod(of) + of[-1]), "bytes": sum(np.asarray(x).nbytes for x in stored),
        }
        for (layer, of), stored in zip(weighted(layers, shape), weights, strict=True)
    ]  # fmt: skip
    return {"layers": each, **{name: sum(layer[name] for layer in each) for name in ("parameters", "bytes")}}


def _latency(full: policy.Actor, small: policy.Actor, format: str, number: str, batch: int) -> list[dict[str, Any]]:
    """Microseconds of a call: of the full policy as such a file and in the fastest engine, and of the file."""
    card, runtime = full.card, FORMATS[format].engine

    def as_file(actor: policy.Actor, mode: str) -> Session:
        data = model(actor.card.layers, actor.card.obs, actor.weights[0], format, mode, batch=batch)
        return Session(lambda weights: None, FORMATS[format].open(data))

    sessions = {("full", runtime): as_file(full, "fp32"), ("file", runtime): as_file(small, number)}
    for engine in engines.usable("fp32", engines.ACTOR_ENGINES):
        sessions["engine", engine.name] = session = engine.build(card.layers, card.obs, batch, "fp32")
        session.load(full.weights[0])
    x = engines.random_obs(card.obs, batch, np.random.default_rng(0))
    times = engines.microseconds(sessions, x, SECONDS)
    best = min((who for who in times if who[0] == "engine"), key=lambda who: times[who])
    rows = (("full", ("full", runtime)), ("full, fastest engine", best), ("file", ("file", runtime)))
    return [
        {"batch": batch, "policy": name, "engine": who[1], "microseconds": round(times[who], 2)} for name, who in rows
    ]


def compared(full: policy.Actor, file: Call, episodes: int, knobs: dict[str, Any]) -> dict[str, Any]:
    """How the file plays beside the full policy; where that is not known, `not_played` says why."""
    card, whole = full.card, full.session(1).run
    reason = _obstacle(card) if episodes else "no episodes were asked for"
    if reason:
        return {"not_played": reason}
    try:
        ours = play(card, file, knobs, episodes)
        theirs = play(card, whole, card.knobs, episodes)
    except Exception as error:  # out of the environment, which may raise anything
        return {"not_played": f"{card.env} failed: {one_line(error)}"}
    gaps = np.subtract(ours.returns, theirs.returns)
    cap = episode_cap(card.env, options_for(card.env, card.env_options))
    returns = {"full": theirs.returns, "file": ours.returns, "difference": gaps}
    return {
        "episodes": episodes, "first_seed": HELD_OUT, "episode_cap": cap,
        **{name: bootstrap(values, np.mean)._asdict() for name, values in returns.items()},
        **difference(card, whole, file, ours.observations),
    }  # fmt: skip


def _obstacle(card: policy.Card) -> str | None:
    """Why the environment cannot be played here, or None."""
    try:
        obs, actions = catalog.spaces(card.env, options_for(card.env, card.env_options))
    except UsageError as error:
        return str(error)
    fits = obs.shape == card.obs.shape and type(actions) is type(card.actions)
    return None if fits else f"the policy does not fit the version of {card.env} that is installed"


def play(card: policy.Card, run: Call, knobs: dict[str, Any], episodes: int) -> Play:
    """Greedy episodes on the held-out seeds, one after the other."""
    kept, step, every = [], 0, 1

    def act(obs: np.ndarray) -> np.ndarray:
        nonlocal kept, step, every
        if step % every == 0:
            kept.append(obs[0].copy())
        step += 1
        if len(kept) > MOST:
            kept, every = kept[::2], 2 * every
        return policy.HEADS[card.head](run(obs), knobs).mode()

    options = options_for(card.env, card.env_options)
    played = on_gymnasium(act, card.env, episodes, parallel=1, options=options, obs_dtype=card.obs.dtype)
    return Play(played.returns.tolist(), np.stack(kept))


def difference(card: policy.Card, full: Call, file: Call, observations: np.ndarray) -> dict[str, Any]:
    """KL(full || file) in nats and what becomes of the greedy action, over `observations` [n, ...]."""
    knobs = {name: EXPLORING[name] if name in EXPLORING and not x else x for name, x in card.knobs.items()}
    arrays = {name: np.asarray(x, np.float32) for name, x in knobs.items()}

    def dist(run: Call) -> Any:
        return policy.HEADS[card.head](np.concatenate([run(obs[None]) for obs in observations]), arrays)

    whole, ours = dist(full), dist(file)
    found = divergence(whole, ours)
    if not isinstance(card.actions, Discrete):  # numbers that were rounded hardly ever agree to the last bit
        gap = abs(whole.mode() - ours.mode())
        found = {"kl": found["kl"], "action_gap": float(gap.mean()), "largest_action_gap": float(gap.max())}
    return found | {"observations": len(observations), "knobs_of_kl": {k: knobs[k] for k in EXPLORING if k in knobs}}


def environment_packages(env: str) -> list[dict[str, Any]]:
    """Name, version and licence of the packages that an environment needs, as they say themselves."""
    family = catalog.family_of(env)
    try:
        entry = find(env).entry_point
        module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    except Exception:  # not installed, or a module that fails
        module = env.rpartition(":")[0]
    names = (module.partition(":")[0].partition(".")[0], family.module if family else "")
    return [_package(name) for name in dict.fromkeys(names) if name not in ("", "frugalrl")]


def _package(module: str) -> dict[str, Any]:
    names = metadata.packages_distributions().get(module, [])
    if not names:
        return {"package": module, "version": None, "licence": None}
    name = module if module in names else names[0]  # several may have a part in one module
    about = metadata.metadata(name)
    classified = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    # some put all of its text into the last of these
    said = about.get_all("License-Expression") or classified or about.get_all("License") or [""]
    return {"package": name, "version": about["Version"], "licence": said[0].strip().partition("\n")[0] or None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
