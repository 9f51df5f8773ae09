"""XLA, through JAX: `networks.network` itself. Not for an actor process, which does without JAX.

The weights are arguments of one compiled function, so a load compiles nothing; in every mode they are made float32
when loaded. On a CPU small networks run several times faster with `jax.config.update("jax_cpu_enable_async_dispatch",
False)`, which is the program's to set.
"""

from __future__ import annotations

import numpy as np

from ....networks import Layers, network
from ....types import Box, Engine, Session
from .shared import needs, unloaded, widened, with_cast


def build(layers: Layers, obs: Box, batch: int, mode: str) -> Session:
    import jax
    import jax.numpy as jnp

    apply = jax.jit(jax.vmap(network(with_cast(layers, obs), obs).apply, (None, 0)))
    shape = (batch, *obs.shape)
    call = unloaded

    def load(new: tuple) -> None:
        nonlocal call
        # jnp.array copies: XLA may otherwise read the caller's memory, which the caller may change
        weights = jax.tree.map(jnp.array, widened(new, mode))

        def run(obs: np.ndarray) -> np.ndarray:
            if obs.shape != shape:
                raise ValueError(f"this session takes observations of shape {shape}, not {obs.shape}")
            return np.array(apply(weights, obs))

        call = run

    return Session(load, lambda obs: call(obs))


ENGINE = Engine("xla", ("fp32", "bf16", "int8", "int8-static"), needs("pip install jax", "jax"), build)
