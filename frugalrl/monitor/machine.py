"""Processor time, memory and energy of a run, and the machine and software it ran on."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

WATTS_PER_CORE = 10.0  # a busy core with its share of the machine; an assumption, for where nothing is measured
RAPL = Path("/sys/class/powercap")
RAPL_WATTS = 400.0  # more than one package draws; tells how long a counter takes, at least, to start again from zero
INSTRUCTION_SETS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),  # x86
    *("asimddp", "i8mm", "bf16"),  # Arm
)
CGROUPS = (  # folder, limit, use, and what of it are files, in version 2 and in version 1
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
PACKAGES = ("frugalrl", "jax", "jaxlib", "numpy", "gymnasium", "ai-edge-litert")


class Usage(NamedTuple):
    """What one process has used since it began."""

    cpu_seconds: float  # user and system
    peak_memory_bytes: int | None  # most resident memory at once; None if this system does not tell


class Cost(NamedTuple):
    """What a run has used so far, in all its sessions."""

    wall_seconds: float
    cpu_seconds: float
    peak_memory_bytes: int | None
    energy_joules: float | None
    energy_method: str


class Meter:
    """Measures a run from its construction on.

    `before` is the Cost of earlier sessions of the same run, kept with its checkpoint. `finish` may be called as often
    as wanted (at each checkpoint, say) and ends nothing. Call `tick` at least every ten minutes or so, since an energy
    counter starts again from zero when it is full; a gap that is too long makes the energy an estimate.

    The CPU time is that of this process, of the children it has waited for, and of the `actors` handed to `finish`:
    those still alive, each with its own `usage`. The peak memory is the sum of the peaks of this process and of those
    actors, an upper bound for what was used at one time. Children that ended are left out of it: on Linux their
    `ru_maxrss` is at least that of the parent that started them.
    """

    def __init__(
        self,
        before: Cost | None = None,
        watts_per_core: float = WATTS_PER_CORE,
        rapl: Path = RAPL,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.before = before
        self.watts_per_core = watts_per_core
        self.clock = clock
        self.began = clock()
        self.cpu_began = _cpu_seconds()
        self.zones = _rapl_zones(rapl)
        self.counters = [zone.read() for zone in self.zones]
        self.counted_at = self.began
        self.joules = 0.0
        self.counted = bool(self.zones) and None not in self.counters

    def tick(self) -> None:
        """Read the energy counters, if there are any; takes some 20 microseconds."""
        if not self.counted:
            return
        now, counters = self.clock(), [zone.read() for zone in self.zones]
        for zone, old, new in zip(self.zones, self.counters, counters, strict=True):
            if old is None or new is None or RAPL_WATTS * (now - self.counted_at) > zone.range / 1e6:
                self.counted = False
                return
            self.joules += (new - old) % zone.range / 1e6
        self.counters, self.counted_at = counters, now

    def finish(self, actors: Sequence[Usage] = ()) -> Cost:
        """The cost up to now."""
        self.tick()
        cpu_seconds = _cpu_seconds() - self.cpu_began + sum(actor.cpu_seconds for actor in actors)
        peaks = [peak for process in (usage(), *actors) if (peak := process.peak_memory_bytes) is not None]
        joules, method = self._energy(cpu_seconds)
        cost = Cost(self.clock() - self.began, cpu_seconds, sum(peaks) or None, joules, method)
        return cost if self.before is None else _both(self.before, cost)

    def _energy(self, cpu_seconds: float) -> tuple[float, str]:
        accelerator = "; the accelerator is not counted" if _accelerator() else ""
        if self.counted:
            return self.joules, f"measured: RAPL counters of the whole processor, all its users included{accelerator}"
        watts = f"{self.watts_per_core:g}"
        return (
            cpu_seconds * self.watts_per_core,
            f"estimated: CPU seconds x {watts} W for a busy core (assumed; no energy counter to read){accelerator}",
        )


def usage(pid: int | None = None) -> Usage:
    """What a process has used so far: this one, or on Linux the one with that pid.

    The memory is the high-water mark of resident memory (VmHWM on Linux, `ru_maxrss` elsewhere). Raises
    ProcessLookupError if there is no such process.
    """
    if pid is None:
        return Usage(time.process_time(), _high_water("self") or _max_rss())
    try:
        # The name, in brackets, may hold spaces; utime and stime are fields 14 and 15 counted from 1, state is field 3.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise ProcessLookupError(f"no process {pid} to read in /proc") from None
    return Usage((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), _high_water(str(pid)))


def hardware() -> dict[str, Any]:
    """`cpu`, `cores` this process may use, `memory_bytes`, `instruction_sets`, and `accelerator` (None without one).

    The accelerator is known only if JAX has been imported already: looking for one would take seconds.
    """
    cpuinfo = _colon_file("/proc/cpuinfo")
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return {
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_bytes": _memory_bytes(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "accelerator": _accelerator(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def free_memory() -> int | None:
    """Bytes that a program can still have: of the first accelerator, on which runs begin, if JAX uses any, else of the
    machine or of the container that this process is in. None if this system does not tell.
    """
    jax = sys.modules.get("jax")
    devices = jax.devices() if jax is not None and hasattr(jax, "devices") else []
    if devices and devices[0].platform != "cpu":
        told = devices[0].memory_stats() or {}
        one = told.get("bytes_limit")
        return None if one is None else one - told.get("bytes_in_use", 0)
    return free_here()


def free_here() -> int | None:
    """The same of the machine or container, whatever accelerators there are."""
    text = _colon_file("/proc/meminfo").get("MemAvailable")
    free = [] if text is None else [1024 * int(text.split()[0])]
    for folder, limit, used, files in CGROUPS:
        try:
            kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(kept[files])  # files that were read are given up for more
            free.append(int((folder / limit).read_text()) - taken)
        except (OSError, ValueError, KeyError):  # not in one, or "max"
            continue
    return max(0, min(free)) if free else None


def versions() -> dict[str, str | None]:
    """The version of Python and of each package that the numbers depend on; None for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


class _Zone(NamedTuple):
    """One RAPL counter of microjoules, which starts again from zero at `range`."""

    path: Path
    range: int

    def read(self) -> int | None:
        try:
            return int((self.path / "energy_uj").read_text())
        except (OSError, ValueError):
            return None


def _rapl_zones(root: Path) -> list[_Zone]:
    """The counters of whole packages, and of memory, which is beside them; core and uncore are within."""
    zones = []
    for path in sorted(root.glob("intel-rapl:*")):  # the AMD driver has this name too
        try:
            name = (path / "name").read_text().strip()
            limit = int((path / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
        if limit > 0 and (name.startswith("package") or name == "dram"):
            zones.append(_Zone(path, limit))
    return zones if all(zone.read() is not None for zone in zones) else []


def _both(a: Cost, b: Cost) -> Cost:
    joules = None if a.energy_joules is None or b.energy_joules is None else a.energy_joules + b.energy_joules
    peaks = [peak for peak in (a.peak_memory_bytes, b.peak_memory_bytes) if peak is not None]
    methods = dict.fromkeys([a.energy_method, b.energy_method])  # each once, in order
    return Cost(
        wall_seconds=a.wall_seconds + b.wall_seconds,
        cpu_seconds=a.cpu_seconds + b.cpu_seconds,
        peak_memory_bytes=max(peaks, default=None),
        energy_joules=joules,
        energy_method=" + ".join(methods),
    )


def _cpu_seconds() -> float:
    """Of this process and of the children it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def family_seconds() -> float:
    """Processor seconds of this process and of its children so far; on Linux also of those that are still running."""
    seconds = _cpu_seconds()
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # of a thread that has just ended
            for pid in file.read_text().split():
                with suppress(ProcessLookupError):
                    seconds += usage(int(pid)).cpu_seconds
    return seconds


def _high_water(process: str) -> int | None:
    text = _colon_file(f"/proc/{process}/status").get("VmHWM")
    return 1024 * int(text.split()[0]) if text else None


def _max_rss() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _colon_file(path: str) -> dict[str, str]:
    """The "name: value" lines of a file under /proc; the first of each name, nothing if there is no such file."""
    values: dict[str, str] = {}
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return values
    for line in lines:
        name, _, value = line.partition(":")
        values.setdefault(name.strip(), value.strip())
    return values


def cores() -> int:
    """Cores this process may run on, which in a container or a batch job are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _accelerator() -> str | None:
    jax = sys.modules.get("jax")
    if jax is None or not hasattr(jax, "devices"):
        return None
    kinds = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    return f"{len(kinds)} x {kinds[0]}" if kinds else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
