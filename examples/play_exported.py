"""Plays ten greedy episodes of an exported policy by its two files, without FrugalRL and JAX.

    pip install numpy gymnasium ai-edge-litert        # of a .tflite file; of an .onnx file: onnxruntime
    frugal export RUN --format litert --mode int8 --out policy.tflite
    python examples/play_exported.py policy.tflite CartPole-v1

The model card beside the file, policy.tflite.md, has the Python from an observation to the action, discrete or
continuous, and that is what runs here: read the card first if the files are not your own.
"""

import re
import sys
from pathlib import Path

import gymnasium

file, env, program = Path(sys.argv[1]), gymnasium.make(sys.argv[2]), {}
code = re.search("```python\n(.*?)```", Path(f"{file}.md").read_text(), re.DOTALL)[1]
exec(code.replace(f'"{file.name}"', repr(str(file))), program)
env, returns = gymnasium.wrappers.RecordEpisodeStatistics(env), []
for seed in range(10):
    obs, info = env.reset(seed=seed)
    while "episode" not in info:
        obs, *_, info = env.step(program["act"](obs))
    returns.append(float(info["episode"]["r"]))
print(f"returns: {returns}\nmean return of {len(returns)} episodes: {sum(returns) / len(returns):.1f}")
