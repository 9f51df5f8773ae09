"""The wire inside a training program: an agent that acts with what its packets would say."""

from __future__ import annotations

from ...types import Agent, Compressor


def compressed(agent: Agent, compressor: Compressor) -> Agent:
    """The agent whose `policy` has gone through `compressor` and back, as that of an actor process has.

    Everything else stays, so that learning is of the full network. Correct first and compress then,
    `compressed(corrected(agent, ...), ...)`: the other way round the Corrector would compare the compressed policy with
    itself.
    """
    return agent._replace(policy=lambda state: compressor.decode(compressor.encode(agent.policy(state))))
