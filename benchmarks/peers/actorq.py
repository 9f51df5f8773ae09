"""Runs one actor of ActorQ's published D4PG (Krishnan et al., arXiv 1910.01055) and prints one JSON line.

Run in the peer's own environment (see `setup.sh`), from the root of the project, on a checkout of the pinned commit,
with a `Task` as JSON:

    TF_CPP_MIN_LOG_LEVEL=3 .venv-peers/actorq/bin/python -m benchmarks.peers.actorq CHECKOUT \\
        '{"algorithm": "d4pg", "env": "HalfCheetah-v5", "steps": 2000, "hidden": [2048, 2048, 2048],
          "options": {"quantize": 8, "actor_update_period": 100}}'

The actor is the published `actor_main.py` in a process of its own; `options` are its flags. One line of it is changed:
its indentation at the pinned commit is an error. Its environments come from Gym, which Gymnasium stands in for here,
with today's HalfCheetah; what else it imports and does not use (JAX, DM Control, bsuite) is hollow.

No learner runs. This process holds the Reverb tables that the published learner would, and in place of learner and
broadcaster puts new weights there every PUBLISH seconds, packed by the published code. So the rate is that of an actor
whose learner has processors of its own. The clock runs from step WARM_UP of the actor, which pulls from the first step
on, to `steps` later. `seconds` splits that time: environment, pull (Reverb's sample and its bytes), decode
(unpickling), load (`load_state_dict`), and the rest, `act`: the network, its noise, and the transition on its way to
the replay.
"""
# pyright: reportMissingImports=false
# Torch, TensorFlow, Acme and Reverb live in the peer's environment, not in ours.

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import re
import subprocess
import sys
import threading
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.peers.common import PUBLISH, WARM_UP, Task

COMMIT = "757f2906b10e096c37cc86e156466910f3f37201"
SHA256 = {
    "actor_main.py": "7f4c1965ef2f595886e23c8a45519c3e9f8930798ef494472a29c86b93e4ba81",
    "d4pg_args.py": "572b61d3f89f46c32c0dc4014b43e036e6095255d89a126b557545cecde9a37e",
    "pytorch_actors.py": "d2efabd71c8e4122634fe48e651aef2cf69abce954c14157d9a2f80ee185a68f",
    "utils.py": "1e6cb1296d072649f863b4c5979aa3ad1860741e24de5847a4a71c9096e5e8bd",
}
HOW_TO_GET = (
    f"git clone https://github.com/harvard-edge/QuaRL CHECKOUT && git -C CHECKOUT checkout {COMMIT}, "
    "then pass CHECKOUT in the variable ACTORQ_SOURCE"
)
UNUSED = ("jax", "chex", "haiku", "rlax", "optax", "flax", "distrax", "launchpad", "bsuite", "zstd", "msgpack")
UNUSED += ("dm_control",)
TIMES = r"Pull time: ([\d.]+), Decompress/tobytes time: ([\d.]+), Deserialize time: ([\d.]+)"
LOADS = r"Load state dict time: ([\d.]+)"


class Hollow(type):
    """The class of `Nothing`, which stands for whatever an unused module holds: any name, call, index or union."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing

    def __call__(cls, *_: object, **__: object) -> Any:
        return Nothing

    def __getitem__(cls, _: object) -> Any:
        return Nothing

    def __or__(cls, _: object) -> Any:
        return Nothing

    __ror__ = __or__


class Nothing(metaclass=Hollow):
    """What an unused module holds."""


class Unused(MetaPathFinder, Loader):
    """Finds hollow modules for the names in UNUSED."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in UNUSED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        made = ModuleType(spec.name)
        made.__getattr__ = lambda name: getattr(Nothing, name)  # type: ignore[method-assign]
        return made

    def exec_module(self, module: ModuleType) -> None: ...


class Finished(BaseException):
    """The actor has made its steps."""


class Clocked:
    """A Gymnasium environment as Gym knew it, which takes the time and raises Finished after `steps` more than WARM_UP.

    `printed` is what the actor writes to: emptied when the clock starts.
    """

    def __init__(self, env_id: str, steps: int, printed: io.StringIO):
        import gymnasium

        self.env, self.steps, self.printed = gymnasium.make(env_id), steps, printed
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        self.count, self.began, self.ended, self.inside = 0, 0.0, 0.0, 0.0

    def reset(self) -> Any:
        return self.env.reset()[0]

    def step(self, action: Any) -> tuple:
        start = time.time()
        if self.count == WARM_UP:
            self.began, self.inside = start, 0.0
            self.printed.seek(0)
            self.printed.truncate()
        if self.count == WARM_UP + self.steps:
            self.ended = start
            raise Finished
        self.count += 1
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.inside += time.time() - start
        return obs, reward, terminated or truncated, info | {"TimeLimit.truncated": truncated}


def prepare(checkout: Path, task: Task, printed: io.StringIO) -> list[Clocked]:
    """Make the published modules importable; returns the environments that they will make, so far none.

    Raises FileNotFoundError without a checkout, ValueError when a file is not that of the pinned commit.
    """
    folder = checkout / "actorQ" / "d4pg"
    for name, digest in SHA256.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no ActorQ at {checkout}: {HOW_TO_GET}")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder / name} is not the file of the pinned commit: {HOW_TO_GET}")
    import gymnasium

    made: list[Clocked] = []

    def make(env_id: str, **_: object) -> Clocked:
        made.append(Clocked(env_id, task.steps, printed))
        return made[-1]

    gym = ModuleType("gym")
    gym.__dict__.update({name: getattr(gymnasium, name) for name in ("Env", "Space", "spaces", "Wrapper")}, make=make)
    sys.modules |= {"gym": gym, "gym.spaces": gymnasium.spaces}
    sys.meta_path.insert(0, Unused())
    sys.path.insert(0, str(folder))
    return made


def act(checkout: Path, task: Task, port: int) -> dict[str, Any]:
    """Run the published actor against the tables at `port`; returns its rate and where the time went."""
    printed = io.StringIO()
    made = prepare(checkout, task, printed)
    path = checkout / "actorQ" / "d4pg" / "actor_main.py"
    text, changed = re.subn(r"\n {9}traceback\.print_exc\(\)\n", "\n        traceback.print_exc()\n", path.read_text())
    if changed != 1:
        raise ValueError(f"expected one line to indent in {path}, found {changed}")
    values = {
        "taskstr": f"gym,{task.env}", "model_str": ",".join(map(str, task.hidden)), "port": port, "actor_id": 1,
        "min_replay_size": 0,
    } | task.options  # fmt: skip
    sys.argv = [str(path), *(word for name, value in values.items() for word in (f"--{name}", str(value)))]
    without_timeout()
    program = ModuleType("__main__")
    with contextlib.redirect_stdout(printed), contextlib.suppress(Finished):
        exec(compile(text, str(path), "exec"), program.__dict__)
    (env,) = made
    pulls = np.array(re.findall(TIMES, printed.getvalue()), float).reshape(-1, 3)
    loads = np.array(re.findall(LOADS, printed.getvalue()), float)
    seconds = {
        "environment": env.inside, "pull": pulls[:, :2].sum(), "decode": pulls[:, 2].sum(), "load": loads.sum()
    }  # fmt: skip
    rest = env.ended - env.began - sum(seconds.values())
    return {
        "began": env.began,
        "ended": env.ended,
        "refreshes": len(pulls),
        "seconds": {name: float(value) for name, value in {"act": rest, **seconds}.items()},
    }


def without_timeout() -> None:
    """Reverb has dropped an argument that Acme, the last version of which is older, still gives."""
    import reverb

    writer = reverb.Client.trajectory_writer

    def accepts(self: Any, *words: Any, get_signature_timeout_ms: Any = None, **more: Any) -> Any:
        return writer(self, *words, **more)

    reverb.Client.trajectory_writer = accepts


def tables(options: dict[str, Any]) -> list:
    """The Reverb tables of the published `d4pg_learner.py`, by the names its actor looks for."""
    import reverb

    fifo, lifo, one = reverb.selectors.Fifo, reverb.selectors.Lifo, reverb.rate_limiters.MinSize
    times = int(options.get("replay_table_max_times_sampled", 16))  # as its script says; nothing samples it here
    replay = reverb.Table("priority_table", reverb.selectors.Uniform(), fifo(), 100_000, one(1), times)
    return [replay, *(reverb.Table(name, lifo(), fifo(), 1, one(1)) for name in ("model_table_name", SHUTDOWN))]


SHUTDOWN = "shutdown_table_name"


def publish(client: Any, task: Task, ended: threading.Event) -> int:
    """Put new weights into the table every PUBLISH seconds until `ended`; returns the bytes of one packet."""
    import pytorch_actors
    import torch
    from acme import specs
    from utils import input_size_from_obs_spec, make_environment

    spec = specs.make_environment_spec(make_environment(f"gym,{task.env}"))
    sizes = input_size_from_obs_spec(spec.observations), int(np.prod(spec.actions.shape))
    model = pytorch_actors.create_model(*sizes, spec.actions, 1.0, policy_layer_sizes=tuple(task.hidden))
    count, size = 0, 0
    while count == 0 or not ended.wait(PUBLISH):
        with torch.no_grad():
            for x in model.parameters():
                x += 1e-4 * torch.randn_like(x)
        state = pytorch_actors.pytorch_quantize(model, int(task.options.get("quantize", 32))).state_dict()
        state["id"] = count  # in place: it carries the versions of its layers, which a new dictionary would lose
        packet = np.frombuffer(pickle.dumps(state), np.uint8)
        client.insert([packet], {"model_table_name": 1.0})
        count, size = count + 1, packet.size
    return size


def train(task: Task, checkout: Path) -> dict[str, object]:
    """Run an actor once; times in seconds, `began` and `ended` in seconds since the epoch."""
    imports_from = time.perf_counter()
    prepare(checkout, task, io.StringIO())
    from importlib.metadata import version

    import reverb

    server = reverb.Server(tables(task.options))
    client = reverb.Client(f"localhost:{server.port}")
    client.insert(0, {SHUTDOWN: 1.0})
    ended, sizes = threading.Event(), []
    publisher = threading.Thread(target=lambda: sizes.append(publish(client, task, ended)), daemon=True)
    publisher.start()
    import_seconds = time.perf_counter() - imports_from
    words = [sys.executable, "-m", "benchmarks.peers.actorq", str(checkout), json.dumps(task._asdict())]
    try:
        done = subprocess.run([*words, str(server.port)], capture_output=True, text=True)
    finally:
        ended.set()
        publisher.join()
        server.stop()
    if done.returncode:
        raise RuntimeError(f"the actor exited with {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "peer": f"actorq {task.algorithm}",
        "steps": task.steps,
        "updates": 0,
        "wall_seconds": found["ended"] - found["began"],
        "import_seconds": import_seconds,
        "mean_return": None,
        "packet_bytes": sizes[0],
        **found,
        "versions": {"actorq": COMMIT}
        | {name: version(name) for name in ("torch", "tensorflow-cpu", "dm-acme", "dm-reverb", "gymnasium", "mujoco")},
    }


if __name__ == "__main__":
    where, asked = Path(sys.argv[1]).resolve(), Task(**json.loads(sys.argv[2]))
    print(json.dumps(act(where, asked, int(sys.argv[3])) if len(sys.argv) > 3 else train(asked, where)))
