"""Plays ten greedy episodes of an exported policy by its two files, without FrugalRL and JAX.

    pip install numpy gymnasium ai-edge-litert        # of a .tflite file; of an .onnx file: onnxruntime
    frugal export RUN --format litert --mode int8 --out policy.tflite
    python examples/play_exported.py policy.tflite CartPole-v1

It is for files of every kind of policy, whose model card, policy.tflite.md say, ends with all about it as JSON. For one
file alone that card has the Python from an observation to the action, some ten lines to copy.
"""

import json
import sys

import gymnasium
import numpy as np

file, env = sys.argv[1], gymnasium.make(sys.argv[2])
with open(f"{file}.md", encoding="utf-8") as card:
    facts = json.loads(card.read().rpartition("```json")[2].partition("```")[0])
dtype = np.uint8 if facts["observations"]["dtype"] in ("uint8", "bool") else np.float32
if file.endswith(".onnx"):
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
else:
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(model_path=file, num_threads=1)
    model.allocate_tensors()


def outputs_of(obs):
    if file.endswith(".onnx"):
        return session.run(["outputs"], {"obs": obs})[0][0]
    model.set_tensor(model.get_input_details()[0]["index"], obs)
    model.invoke()
    return model.get_tensor(model.get_output_details()[0]["index"])[0]


def act(obs):
    outputs, space = outputs_of(np.asarray(obs, dtype)[None]), env.action_space
    if facts["head"] == "distributional_greedy":  # logits of returns, which lie evenly
        weights = np.exp(outputs.reshape(space.n, -1) - outputs.max())
        outputs = weights @ np.arange(weights.shape[-1]) / weights.sum(-1)
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(outputs.argmax())
    if facts["head"] == "normal":
        return np.clip(outputs, space.low, space.high)
    mean = outputs[: space.low.size]  # of "tanh_normal" deviations follow
    return (space.low + space.high) / 2 + (space.high - space.low) / 2 * np.tanh(mean).reshape(space.shape)


env, returns = gymnasium.wrappers.RecordEpisodeStatistics(env), []
for seed in range(10):
    obs, info = env.reset(seed=seed)
    while "episode" not in info:
        obs, *_, info = env.step(act(obs))
    returns.append(float(info["episode"]["r"]))
print(f"returns: {returns}\nmean return of {len(returns)} episodes: {sum(returns) / len(returns):.1f}")
