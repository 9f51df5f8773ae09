"""Plays an exported policy with its file alone: neither FrugalRL nor JAX is needed.

    pip install numpy gymnasium ai-edge-litert        # of a .tflite file; of an .onnx file: onnxruntime
    frugal export RUN --format litert --mode int8 --out policy.tflite
    python examples/play_exported.py policy.tflite CartPole-v1

It takes environments with discrete actions, whose best is the index of the largest output. For others the model card
beside the file, policy.tflite.md say, has the few lines that turn outputs into an action.
"""

import argparse

import gymnasium
import numpy as np


def opened(path):
    """A function from one observation to the outputs of the network, both NumPy arrays."""
    return opened_onnx(path) if path.endswith(".onnx") else opened_litert(path)


def opened_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(obs):
        interpreter.set_tensor(source["index"], np.asarray(obs, source["dtype"])[None])
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])[0]

    return run


def opened_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    dtype = np.uint8 if session.get_inputs()[0].type == "tensor(uint8)" else np.float32
    return lambda obs: session.run(["outputs"], {"obs": np.asarray(obs, dtype)[None]})[0][0]


def episode(env, run, seed):
    """The return of one greedy episode."""
    obs, _ = env.reset(seed=seed)
    total, done = 0.0, False
    while not done:
        obs, reward, terminated, truncated, _ = env.step(int(run(obs).argmax()))
        total, done = total + float(reward), terminated or truncated
    return total


def main():
    parser = argparse.ArgumentParser(description="Play an exported policy.")
    parser.add_argument("file", help="what `frugal export` wrote: a .tflite or .onnx file")
    parser.add_argument("env", nargs="?", default="CartPole-v1", help="a Gymnasium id (default CartPole-v1)")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    a = parser.parse_args()
    env, run = gymnasium.make(a.env), opened(a.file)
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        parser.error(f"{a.env} has no discrete actions: see the model card, {a.file}.md")
    returns = [episode(env, run, a.seed + i) for i in range(a.episodes)]
    env.close()
    print(f"returns: {returns}")
    print(f"mean return of {a.episodes} episodes: {np.mean(returns):.1f}")


if __name__ == "__main__":
    main()
