"""Workers on a Ray cluster, which train whatever they are told, and which may die.

A pool hands tasks to workers. One that dies with its process or its node takes nothing along but the task it was at:
that is given to another, from where it began. A worker keeps what it has trained, so that a next task of the same run
goes on without anything being sent; another worker is sent where to begin. This file does not import JAX, and Ray only
when a cluster is asked for.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import RunFailed, UsageError, one_line
from ..types import Transition
from ..xla import keep_memory, module_path
from .actor import Slot, Spec

if TYPE_CHECKING:
    from .actors import Line, Wire

PATIENCE = 3  # times in a row that a task may lose its worker, or a worker fail to start
TRIES = 3  # to begin a cluster: Ray gives a node half a minute to come up, which on a busy machine is not enough
LOOK = 2.0  # seconds between two looks at what nodes there are
CPU_ONLY = {"JAX_PLATFORMS": "cpu"}  # of workers: Ray would have to share out accelerators
QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def _prepare(path: list[str]) -> None:
    """A process that Ray has made, before anything is imported."""
    os.environ.update(CPU_ONLY)
    keep_memory()
    sys.path += [p for p in path if p not in sys.path and os.path.isdir(p)]  # the user's environments


class Service(NamedTuple):
    """What a worker does."""

    answer: Callable[[Any], Any]
    drop: Callable[[int], None]  # a run that it keeps


class Host:
    """A worker, as Ray makes it: `module` has a `serve(settings)`, which gives a Service."""

    def __init__(self, module: str, settings: Any, path: list[str]):
        _prepare(path)
        self.service: Service = importlib.import_module(module).serve(settings)

    def ask(self, question: Any) -> Any:
        return self.service.answer(question)

    def drop(self, run: int) -> None:
        self.service.drop(run)

    def node(self) -> str:
        import ray  # pyright: ignore[reportMissingImports]

        return ray.get_runtime_context().get_node_id()


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, connected to the cluster at `address`, or to one on this machine that ends with it.

    A process that is connected already stays so, and its cluster is used. Raises UsageError if there is none.
    """
    loaded = "ray" in sys.modules
    os.environ.update(QUIET if address or loaded else QUIET | _lock())  # read when Ray is loaded
    import ray  # pyright: ignore[reportMissingImports]

    if ray.is_initialized():
        yield
        return
    if loaded and not address:
        raise UsageError("--runtime ray: this process has loaded Ray already; call ray.init() before, and that is used")
    with nullcontext(address) if address else _local() as there:
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=there, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray's own, gRPC's, or the system's
            raise UsageError(
                f"--ray-address {there}: no Ray cluster answers there ({_why(error)}); begin one with `ray start "
                "--head`, or leave the option out for one on this machine"
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray puts its own in its place
        try:
            yield
        finally:
            ray.shutdown()


def _lock() -> dict[str, str]:
    """A token for a cluster of this process alone, unless the user's settings say how it is locked."""
    given = any(name.startswith("RAY_AUTH_") for name in os.environ)
    return {} if given else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _local() -> Iterator[str]:
    """The address of a cluster on this machine.

    A process of its own begins it, in a session of its own: Ray forks, which a process with JAX should not, and what
    signals the whole family must reach this process alone, or there would be nothing left to save from. It ends with
    its input, so also if this process is killed.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(module_path())},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdout:
        address = process.stdout.readline().decode().strip()
        if not address or " " in address:
            raise UsageError(f"--runtime ray: Ray does not start on this machine ({address or 'it ended'})")
        try:
            yield address
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()


def main() -> None:
    """The process of `_local`."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    import ray  # pyright: ignore[reportMissingImports]

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever Ray prints must not mix with the address
    for left in reversed(range(TRIES)):
        try:
            found = ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises plain ones
            ray.shutdown()
            if not left:
                print(_why(error), file=replies, flush=True)
                return
        else:
            print(found.address_info["address"], file=replies, flush=True)
            break
    sys.stdin.read()
    ray.shutdown()


class Task(NamedTuple):
    """What a worker is to do next for a run."""

    run: int
    # what a worker is asked: given False it goes on with what that worker keeps of the run, given True it tells where
    # to begin
    question: Callable[[bool], Any]


class Worker:
    def __init__(self, handle: Any, node: Any):
        self.handle, self.born = handle, node  # a reference to the name of its node, until it has come up
        self.node: str | None = None
        self.keeps: set[int] = set()
        self.task: Task | None = None
        self.answer: Any = None  # a reference


class Pool:
    """Workers and what waits for them; use it as a context manager."""

    def __init__(self, module: str, settings: Any, cpus: int, report: Callable[[str], None]):
        """Each worker takes `cpus` processors, or all of a node that has fewer. There is one for each task at most."""
        self.module, self.settings, self.cpus, self.report = module, settings, cpus, report
        self.workers: list[Worker] = []
        self.waiting: list[Task] = []
        self.deaths: dict[int, int] = {}  # of workers, by run, since its last answer
        self.lost: dict[int, int] = {}  # tasks that had to begin anew, by run
        self.stillborn, self.moved = 0, 0  # workers that never came up, in a row; runs that went to another worker
        self.nodes, self.most = set[str](), 0  # where workers were, and how many at once
        self.looked = -LOOK

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *raised: Any) -> None:
        for worker in self.workers:
            self._kill(worker)
        self.workers.clear()

    def submit(self, task: Task) -> None:
        self.waiting.append(task)
        self.assign()

    def forget(self, run: int) -> None:
        """What workers keep of a run is of no use any more."""
        for worker in self.workers:
            if run in worker.keeps:
                worker.keeps.discard(run)
                worker.handle.drop.remote(run)

    def poll(self, timeout: float) -> list[tuple[int, Any]]:
        """(run, answer) of what was done, after at most so many seconds.

        Raises RunFailed if workers cannot be started, or a task has lost its worker too often.
        """
        import ray  # pyright: ignore[reportMissingImports]

        self._tend()
        open_ = {worker.answer if worker.node else worker.born: worker for worker in self.workers}
        open_.pop(None, None)
        if not open_:
            threading.Event().wait(timeout)
            return []
        ready, _ = ray.wait(list(open_), timeout=timeout)
        found = []
        for ref in ready:
            worker = open_[ref]
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise RunFailed(f"a worker of the Ray cluster failed: {_why(error.cause)}", None) from error
            except ray.exceptions.RayError as error:
                self._bury(worker, error)
                continue
            if worker.node is None:
                worker.node, self.stillborn = answer, 0
                self.nodes.add(answer)
                continue
            task = worker.task
            assert task is not None
            worker.task = worker.answer = None
            self.deaths[task.run] = 0
            found.append((task.run, answer))
        self.assign()
        return found

    def assign(self) -> None:
        """Give each idle worker a task: of a run that it keeps, else one that none keeps, else another's."""
        for worker in self.workers:
            if worker.node is None or worker.task or not self.waiting:
                continue
            kept = {run for other in self.workers for run in other.keeps}
            task = min(self.waiting, key=lambda t: 0 if t.run in worker.keeps else 1 if t.run not in kept else 2)
            self.waiting.remove(task)
            anew = task.run not in worker.keeps
            if anew:
                self.moved += task.run in kept
                self.forget(task.run)
                worker.keeps.add(task.run)
            worker.task = task
            worker.answer = worker.handle.ask.remote(task.question(anew))

    def _tend(self) -> None:
        """As many workers as there are tasks, if there is room for them."""
        if perf_counter() - self.looked < LOOK:
            return
        self.looked = perf_counter()
        open_ = len(self.waiting) + sum(worker.task is not None for worker in self.workers)
        for _ in range(min(open_, room(self.cpus)) - len(self.workers)):
            self.workers.append(self._start())
        self.most = max(self.most, len(self.workers))

    def _start(self) -> Worker:
        import ray  # pyright: ignore[reportMissingImports]

        cpus = min(self.cpus, max(free_cpus(), default=1))
        handle = ray.remote(num_cpus=cpus, max_restarts=0, max_task_retries=0)(Host).remote(
            self.module, self.settings, module_path()
        )
        return Worker(handle, handle.node.remote())

    def _bury(self, worker: Worker, error: Exception) -> None:
        self._kill(worker)
        self.workers.remove(worker)
        self.looked = -LOOK
        if worker.node is None:
            self.stillborn += 1
            if self.stillborn >= PATIENCE:
                raise RunFailed(f"no worker of the Ray cluster could be started: {_why(error)}", None)
            return
        task = worker.task
        if task is None:
            return
        self.lost[task.run] = self.lost.get(task.run, 0) + 1
        self.deaths[task.run] = self.deaths.get(task.run, 0) + 1
        if self.deaths[task.run] >= PATIENCE:
            raise RunFailed(f"{PATIENCE} workers in a row died at the same task: {_why(error)}", None)
        self.report(f"a worker died and its interval begins anew: {_why(error)}")
        self.waiting.insert(0, task)

    def _kill(self, worker: Worker) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        with suppress(Exception):  # it may be gone, and so may the cluster
            ray.kill(worker.handle)


class Letters:
    """The newest packet, as a remote actor has it: fetched when it looks, and only then."""

    def __init__(self):
        self.count, self.ref = 0, None

    def put(self, count: int, ref: Any) -> None:
        if count > self.count:  # they may come in any order
            self.ref, self.count = ref, count

    def newest(self) -> int:
        return self.count

    def get(self) -> tuple[int, list[np.ndarray]]:
        import ray  # pyright: ignore[reportMissingImports]

        count, ref = self.count, self.ref
        return count, [x.copy() for x in ray.get(ref)]


class Remote:
    """An actor, as Ray makes it. Packets arrive while it fills slots."""

    def __init__(self, spec: bytes, path: list[str], count: int, ref: list):
        _prepare(path)
        self.letters, self.filling = Letters(), threading.Lock()
        self.put(count, ref)
        self.spec, self.worker = spec, None

    def put(self, count: int, ref: list) -> None:
        self.letters.put(count, ref[0])

    def fill(self, number: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        """(what the Learner is told, the arrays of the slot); of an actor that fails its last words."""
        with self.filling:  # one slot at a time, while packets come in
            return self._fill(number)

    def _fill(self, number: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        from . import actor

        before = time.process_time()
        try:
            if self.worker is None:
                spec: actor.Spec = pickle.loads(self.spec)
                self.worker = actor.Worker(spec, self.letters, actor.slots(np.zeros(actor.slab_size(spec), "u1"), spec))
                self.worker.timer.lap("start")
            told, slot = self.worker.answer(number), self.worker.slots[number]
            told["cpu_seconds"] = time.process_time() - before
            return told, [x.copy() for x in (*slot.items, *slot.gradient)]
        except Exception as error:
            return actor.complaint(error), []


def wire(spec: Spec, plan: Any) -> Wire:
    """Actors on the cluster that this process is connected to, as `actors.Wire` has it; `plan` is an `actors.Plan`."""
    import ray  # pyright: ignore[reportMissingImports]

    from .actors import Line, Wire

    handles: list[Any] = []
    sent: list[Any] = [0, None]  # packets so far, the newest one
    remote = ray.remote(max_restarts=0, max_concurrency=plan.slots + 1, scheduling_strategy="SPREAD")(Remote)

    def put(arrays: list[np.ndarray]) -> None:
        sent[:] = sent[0] + 1, ray.put(arrays)
        for handle in handles:
            handle.put.remote(sent[0], [sent[1]])

    def start(spec: Spec, hear: Callable[[dict | None], None]) -> Line:
        # one that is started anew shares a processor rather than waits for one
        cpus = 1 if len(handles) < min(plan.actors, room(1)) else 0
        handle = remote.options(num_cpus=cpus).remote(pickle.dumps(spec), module_path(), sent[0], [sent[1]])
        handles.append(handle)
        asked: queue.SimpleQueue = queue.SimpleQueue()

        def kill() -> None:
            if handle in handles:
                handles.remove(handle)
            asked.put(None)
            with suppress(Exception):  # it may be gone, and so may the cluster
                ray.kill(handle)

        def listen() -> None:
            for ref in iter(asked.get, None):
                try:
                    told, arrays = ray.get(ref)
                except Exception as error:  # with its process, its node, or the cluster
                    why.append(_why(error))
                    break
                hear(told | {"arrays": arrays})
                if "error" in told:
                    break
            hear(None)

        def take(message: Any) -> Slot:
            arrays, items = message["arrays"], len(Transition._fields)
            return Slot(Transition(*map(np.array, arrays[:items])), [np.array(x) for x in arrays[items:]])

        def end(deadline: float) -> str:
            kill()
            return why[0] if why else "it was ended"

        why: list[str] = []
        threading.Thread(target=listen, daemon=True).start()
        return Line(lambda slot: asked.put(handle.fill.remote(slot)), take, lambda: None, end)

    def close() -> None:
        for handle in handles:
            with suppress(Exception):
                ray.kill(handle)
        handles.clear()

    return Wire(put, start, close)


def free_cpus() -> list[float]:
    """The processors of each node that is alive, used or not."""
    import ray  # pyright: ignore[reportMissingImports]

    return [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]


def room(cpus: int) -> int:
    """How many workers of so many processors the cluster can have at once."""
    found = free_cpus()
    each = min(cpus, max(found, default=1)) or 1
    return int(sum(have // each for have in found))


def _why(error: Exception) -> str:
    return one_line(error).rstrip(":")


if __name__ == "__main__":
    main()
