"""What does an update on pictures cost, and what do its parts save?

    python -m benchmarks.picture_update [--rounds N] [--out FILE] [--quick]

One iteration of learning from a rollout of random Atari frames, as any runtime has it: targets, then all gradients. In
turns as the library does it, with the gradient of a whole minibatch at a time instead of parts that fit the cache, and
with XLA's own convolutions instead of products of patches. Milliseconds of all cores for a step of an environment.
"""

from __future__ import annotations

from time import process_time
from typing import Any
from unittest import mock

from benchmarks import learning, rows
from frugalrl import config, jobs, networks
from frugalrl.agents import ppo

NAME = "picture_update"
# agent, network, side of a picture, environments, steps of each
CASES = (("impala", "impala", 84, 16, 20), ("impala", "nature", 84, 16, 20), ("ppo", "small", 42, 8, 128))
WAYS = ("parts", "whole", "xla")
DEEP = ("impala", "xla")


def iteration(way: str, agent_name: str, network: str, side: int, lanes: int, time: int) -> Any:
    """A function without arguments that makes the updates of one rollout."""
    chosen = config.configure(
        agent_name, "ALE/Pong-v5", env_options={"screen_size": side},
        hyper={"network": network, "n_steps": time, "num_envs": lanes},
    )  # fmt: skip
    at_once = ppo.at_once if way == "parts" else lambda net: None
    convolution = networks.by_xla if way == "xla" else networks.convolution
    with mock.patch.object(ppo, "at_once", at_once), mock.patch.object(networks, "convolution", convolution):
        return learning.iteration(chosen)[0]


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--rounds", type=int, default=3, metavar="N")
    args = command.parse_args()
    rounds, ways = (1, ("parts",)) if args.quick else (args.rounds, WAYS)
    jobs.set_up_jax()
    made = []
    for agent, network, side, lanes, time in CASES[-1:] if args.quick else CASES:
        # XLA's own take minutes for the deep network
        run = {way: iteration(way, agent, network, side, lanes, time) for way in ways if (network, way) != DEEP}
        spent: dict[str, list[float]] = {way: [] for way in run}
        for _ in range(rounds):
            for way, once in run.items():
                start = process_time()
                once()
                spent[way].append((process_time() - start) * 1e3 / (lanes * time))
        for way, each in spent.items():
            times = [a / b for a, b in zip(each, spent["parts"], strict=True)]
            made.append(
                rows.row(
                    NAME, agent=agent, network=network, side=side, lanes=lanes, time=time, way=way, rounds=rounds,
                    cpu_ms_per_step=rows.spread(each), times_parts=rows.spread(times),
                )
            )  # fmt: skip
            print(
                f"{agent:7} {network:7} {side}x{side} {way:6} {made[-1]['cpu_ms_per_step']['median']:7.2f} ms a step, "
                f"{made[-1]['times_parts']['median']:.2f} times", flush=True,
            )  # fmt: skip
    path = rows.destination(NAME, args)
    rows.write(path, made)
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
