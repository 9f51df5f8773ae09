"""Times calls of a network in eager PyTorch, as Stable-Baselines3 runs its policies: NumPy in, NumPy out, no gradient.

Run in the peer's own environment (see `setup.sh`), from the root of the project. The first argument is JSON: `layers`
(each the name and the fields of one of `frugalrl.networks`), `shape` and `dtype` of an observation, `batch`. It prints
one line of JSON with the number of `parameters` and the version of torch; then, for each number of seconds that it
reads, the median microseconds of a call. Only the network is timed, without its value network and what the library does
around it.
"""
# pyright: reportMissingImports=false
# Torch lives in the peer's environment, not in ours.

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any


def main() -> None:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    about = json.loads(sys.argv[1])
    net = sequence(torch.nn, about["layers"], about["shape"])
    rng = np.random.default_rng(0)
    obs = (rng.random((about["batch"], *about["shape"])) * 2).astype(about["dtype"])
    pixels = len(about["shape"]) > 1

    def call() -> Any:
        with torch.no_grad():
            x = torch.as_tensor(obs).float()
            return net(x.permute(0, 3, 1, 2) if pixels else x).numpy()

    assert call().shape[0] == about["batch"]
    count = sum(weights.numel() for weights in net.parameters())
    print(json.dumps({"parameters": count, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        times, end = [], time.perf_counter() + float(line)
        while len(times) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        print(1e6 * statistics.median(times), flush=True)


def sequence(nn: Any, layers: list, shape: list[int]) -> Any:
    """Modules for `layers`; `shape` is [features] or [height, width, channels], and follows them."""
    made = []
    for name, *fields in layers:
        if name == "Dense":
            features, relu, *_ = fields
            made += [nn.Linear(shape[0], features), *([nn.ReLU()] if relu else [])]
            shape = [features]
        elif name == "Conv":
            features, kernel, stride, padding, relu, *_ = fields
            same = padding == "SAME"  # of stride 1, where these networks have it
            made += [nn.Conv2d(shape[2], features, kernel, stride, kernel // 2 if same else 0)]
            made += [nn.ReLU()] if relu else []
            side = [n if same else (n - kernel) // stride + 1 for n in shape[:2]]
            shape = [*side, features]
        elif name == "MaxPool":
            window, stride = fields
            made.append(nn.MaxPool2d(window, stride, window // 2))
            shape = [-(-shape[0] // stride), -(-shape[1] // stride), shape[2]]
        elif name == "Residual":
            made.append(residual(nn, sequence(nn, fields[0], shape)))
        elif name == "Flatten":
            made.append(nn.Flatten())
            shape = [shape[0] * shape[1] * shape[2]]
        elif name == "Relu":
            made.append(nn.ReLU())
        elif name == "Scale":
            made.append(scale(nn, fields[0]))
        else:
            raise ValueError(f"no layer {name}")
    return nn.Sequential(*made)


def residual(nn: Any, body: Any) -> Any:
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, x):
            return x + self.body(x)

    return Residual()


def scale(nn: Any, by: float) -> Any:
    class Scale(nn.Module):
        def forward(self, x):
            return x * by

    return Scale()


if __name__ == "__main__":
    main()
