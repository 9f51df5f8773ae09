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

import jax
import jax.numpy as jnp

from benchmarks import rows
from frugalrl import config, jobs, networks, rng
from frugalrl.agents import ppo
from frugalrl.runtime import compiled

NAME = "picture_update"
# agent, network, side of a picture, environments, steps of each
CASES = (("impala", "impala", 84, 16, 20), ("impala", "nature", 84, 16, 20), ("ppo", "small", 42, 8, 128))
WAYS = ("parts", "whole", "xla")
DEEP = ("impala", "xla")


def iteration(way: str, agent_name: str, network: str, side: int, lanes: int, time: int) -> Any:
    """A function without arguments that makes the updates of one rollout; it is compiled by the first call."""
    chosen = config.configure(
        agent_name, "ALE/Pong-v5", env_options={"screen_size": side},
        hyper={"network": network, "n_steps": time, "num_envs": lanes},
    )  # fmt: skip
    recipe, agent, static, hyper, card, cadence = jobs.records(chosen)
    memory = jobs.memory_of(recipe, static, card, cadence, lanes=lanes, unroll=time, streams=1)
    obs = jax.random.bits(rng.key(0), (time + 1, lanes, *card.obs.shape), jnp.uint8)
    items = jax.tree.map(lambda x: jnp.zeros((time, lanes, *x.shape), x.dtype), jobs.example(card))
    kept = memory.add(memory.init(), items._replace(obs=obs[:-1], next_obs=obs[1:]))
    state = agent.init(rng.key(1), hyper)
    learn = jax.jit(lambda state, kept: compiled.learn(agent, memory, cadence.updates, state, kept, rng.key(2))[0])
    at_once = ppo.at_once if way == "parts" else lambda net: None
    convolution = networks.by_xla if way == "xla" else networks.convolution
    with mock.patch.object(ppo, "at_once", at_once), mock.patch.object(networks, "convolution", convolution):
        jax.block_until_ready(learn(state, kept))  # only now is it traced
    return lambda: jax.block_until_ready(learn(state, kept))


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
