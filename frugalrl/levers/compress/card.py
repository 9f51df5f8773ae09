"""The model card of an exported policy: what was measured of it, in words, tables and code.

It is one Markdown file, so that whatever shows the file's folder shows it too, and so that text and numbers cannot come
apart: its last block holds all of it as JSON, for programs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from ...envs.make import LESSON, EnvOptions, namespace
from ...monitor import words
from ...statistics import Interval

Facts = Mapping[str, Any]
QUIET = 0.9  # of a core: with less of one the machine was busy while calls were measured

# what the outputs of one observation, [n], are, and the body of a function that returns the greedy action
_BEST = "return int(outputs.argmax())"
_STRETCHED = "return (high + low) / 2 + (high - low) / 2 * np.tanh({})"
HEADS = {
    "epsilon_greedy": ("The outputs are the values of the actions. The action is the index of the largest.", _BEST),
    "distributional_greedy": (
        "The outputs are, for one action after the other, logits of its returns, which lie evenly from the least to "
        "the greatest. The action is that of the greatest mean.",
        "logits = outputs.reshape({actions}, -1)\n"
        "weights = np.exp(logits - logits.max(-1, keepdims=True))\n"
        "return int((weights @ np.arange(logits.shape[-1]) / weights.sum(-1)).argmax())",
    ),
    "categorical": (
        "The outputs are logits, their softmax the probabilities of the actions. The action is the likeliest.", _BEST
    ),
    "normal": ("The action is the outputs, clipped to the bounds of the space.", "return np.clip(outputs, low, high)"),
    "squashed_normal": (
        "The action is tanh of the outputs, stretched to the bounds of the space.", _STRETCHED.format("outputs")
    ),
    "clipped_normal": (
        "The action is tanh of the outputs, stretched to the bounds of the space.", _STRETCHED.format("outputs")
    ),
    "tanh_normal": (
        "The action is tanh of the first half of the outputs, stretched to the bounds of the space; the other half is "
        "how far actions were spread in training.",
        _STRETCHED.format("outputs[: len(outputs) // 2]"),
    ),
}  # fmt: skip
_OPEN = {
    "litert": (
        "from ai_edge_litert.interpreter import Interpreter  # pip install ai-edge-litert",
        'interpreter = Interpreter(model_path="{name}", num_threads=1)\n'
        "interpreter.allocate_tensors()\n"
        "(source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()",
        'interpreter.set_tensor(source["index"], np.asarray(obs, np.{dtype})[None])\n'
        "interpreter.invoke()\n"
        'outputs = interpreter.get_tensor(result["index"])[0]',
    ),
    "onnx": (
        "import onnxruntime  # pip install onnxruntime",
        'session = onnxruntime.InferenceSession("{name}", providers=["CPUExecutionProvider"])',
        'outputs = session.run(["outputs"], {{"obs": np.asarray(obs, np.{dtype})[None]}})[0][0]',
    ),
}


def markdown(facts: Facts) -> str:
    """The card. `facts` is what `deploy` measured, as JSON can hold it."""
    file = facts["file"]
    return "\n".join(
        [
            f"# {facts['agent']} on {facts['env']}: {file['name']}",
            "",
            f"A policy that FrugalRL trained, as a file in the format {file['format']}. All numbers were measured when",
            f"it was written, {file['written']}, on the machine below.",
            "",
            *_table(("", ""), _summary(facts)),
            *_section("What goes in and comes out", _interface(facts)),
            *_section("How well it plays", _play(facts["play"])),
            *_section("What it costs", _cost(facts)),
            *_section("Layers", _layers(facts)),
            *_section("Machine, versions and licences", _machine(facts)),
            *_section("All of it for programs", ["```json", json.dumps(facts, allow_nan=False), "```"]),
        ]
    )  # fmt: skip


def code(facts: Facts) -> str:
    """A Python program, without FrugalRL, that defines `act`: one observation to the greedy action."""
    imports, opening, call = _OPEN[facts["file"]["format"]]
    dtype = "uint8" if facts["observations"]["dtype"] in ("uint8", "bool") else "float32"
    body = HEADS[facts["head"]][1]
    names = {"name": facts["file"]["name"], "dtype": dtype, "actions": facts["actions"].get("n")}
    bounds = [f"{k} = np.array({_bound(facts, k)}, np.float32)" for k in ("low", "high") if "low" in body]
    inner = "\n".join([call, body]).format(**names).replace("\n", "\n    ")
    top = "\n".join([opening.format(**names), *bounds])
    return f"import numpy as np\n{imports}\n\n{top}\n\n\ndef act(obs):\n    {inner}\n"


def _bound(facts: Facts, name: str) -> str:
    """A bound of the actions as Python; infinity was written as null."""
    missing = "-np.inf" if name == "low" else "np.inf"
    return json.dumps(facts["actions"][name]).replace("null", missing)


def _section(title: str, lines: Iterable[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"


def _summary(facts: Facts) -> Iterator[tuple[str, str]]:
    file, seeds, first = facts["file"], facts["seeds"], facts["seed"]
    yield "agent", facts["agent"]
    yield "environment", facts["env"]
    options = ", ".join(f"{name}={value}" for name, value in _options(facts))
    if options:
        yield "set up with", options
    steps = facts["steps"]
    yield "trained for", "unknown: there was no receipt" if steps is None else f"{steps:,} steps of each seed"
    yield "training seeds", f"{seeds}, of which this is {'the first' if first is None else f'seed {first}'}"
    yield "mode", file["mode"]
    yield "size of the file", f"{file['bytes']:,} bytes"
    yield "SHA-256 of the file", file["sha256"]


def _options(facts: Facts) -> Iterator[tuple[str, Any]]:
    """What has to be done to the environment's observations, actions and rules; how it was stepped is not."""
    plain, atari = EnvOptions()._asdict(), namespace(facts["env"]) == "ALE"
    for name, value in facts["env_options"].items():
        training = name in (*LESSON, "terminal_on_life_loss", "backend")
        if not training and (value != plain[name] or (atari and value)):
            yield name, value


def _interface(facts: Facts) -> Iterator[str]:
    obs, actions = facts["observations"], facts["actions"]
    kind = "uint8" if obs["dtype"] in ("uint8", "bool") else "float32"
    batch = "1" if facts["file"]["format"] == "litert" else "batch"
    shape = ", ".join(map(str, [batch, *obs["shape"]]))
    bounds = f", {_bounds(obs)}" if _bounds(obs) else ""
    yield f'- Input "obs": {kind} [{shape}], observations as the environment gives them{bounds}.'
    yield f'- Output "outputs": float32, a row for each observation. {HEADS[facts["head"]][0]}'
    if actions["kind"] == "Discrete":
        yield f"- Actions: the whole numbers from 0 to {actions['n'] - 1}."
    else:
        yield f"- Actions: float32 {actions['shape']}{', ' if _bounds(actions) else ''}{_bounds(actions)}."
    yield from ("", "```python", *code(facts).splitlines(), "```")


def _bounds(box: Mapping[str, Any]) -> str:
    """The bounds of a space in words, "" where there is none; infinity was written as null."""

    def said(bound: Any) -> str:
        if isinstance(bound, list):
            return f"[{', '.join(map(said, bound))}]"
        return "no bound" if bound is None else f"{bound:g}"

    if box["low"] is None and box["high"] is None:
        return ""
    return f"from {said(box['low'])} to {said(box['high'])}"


def _play(play: Mapping[str, Any]) -> Iterator[str]:
    if "not_played" in play:
        yield f"Not measured: {play['not_played']}."
        return
    n, cap = play["episodes"], play["episode_cap"]
    yield f"Mean return of greedy play with its 95 % bootstrap interval over episodes, {n} of each policy, on the same"
    yield f"seeds (reset with {play['first_seed']} and up; training had others)."
    if cap is not None:
        yield f"The environment has no time limit: episodes were cut off after {cap:,} steps."
    yield ""
    names = (
        ("full", "full policy, fp32"),
        ("file", "this file"),
        ("difference", "this file less full policy, by episode"),
    )
    yield from _table(("", "return"), ((title, words.interval(Interval(**play[name]))) for name, title in names))
    if n < 2:
        yield from ("", "One episode gives no interval.")
    yield ""
    knobs = ", ".join(f"{name} {value:g}" for name, value in play["knobs_of_kl"].items())
    yield f"On {play['observations']:,} observations of the file's play, evenly spread over it:"
    yield ""
    kl = f"{words.number(play['kl'])} nats on average" + (f", at {knobs}" if knobs else "")
    yield f"- KL(full policy || this file): {kl}."
    if "agreement" in play:
        yield f"- The same greedy action: {100 * play['agreement']:.2f} %."
    else:
        mean, most = (words.number(play[name]) for name in ("action_gap", "largest_action_gap"))
        yield f"- The greedy actions differ by {mean} on average and {most} at most, in each of their numbers."


def _cost(facts: Facts) -> Iterator[str]:
    full, ours = facts["full"], facts["compressed"]
    yield "Microseconds of a call, NumPy to NumPy, on one thread: the median of many, taken in turns."
    yield ""
    batches = list(dict.fromkeys(t["batch"] for t in facts["latency"]))
    times = {(t["policy"], t["batch"]): t for t in facts["latency"]}
    names = {
        "full": "full policy as such a file, fp32",
        "full, fastest engine": "full policy, fp32, fastest engine",
        "file": "this file",
    }
    yield from _table(
        ("", *(f"batch {batch}" for batch in batches)),
        (
            (title, *(f"{times[key, b]['microseconds']:.1f} ({times[key, b]['engine']})" for b in batches))
            for key, title in names.items()
        ),
    )
    if facts["share_of_a_core"] < QUIET:
        share = f"{100 * facts['share_of_a_core']:.0f} %"
        yield from (
            "",
            f"Meanwhile other work left {share} of a core for this: calls took longer than they need, the long ones",
        )
        yield "above all. Export again on a quiet machine."
    if facts["file"]["format"] == "litert":
        yield from ("", "The file takes one observation; larger batches are of the same model written for them.")
    elif facts["file"]["mode"].endswith("int8"):
        yield from ("", "ONNX Runtime makes int8 weights float32 when it loads them: the file is smaller, not faster.")
    yield ""
    rows = ((name, f"{full[name]:,}", f"{ours[name]:,}") for name in ("parameters", "bytes"))
    yield from _table(("weights", "full policy, fp32", "this file"), rows)


def _layers(facts: Facts) -> Iterator[str]:
    """Those that have weights, the file's beside the full policy's."""
    pairs = zip_longest(facts["full"]["layers"], facts["compressed"]["layers"], fillvalue={})

    def said(value: Any) -> str:
        return " x ".join(map(str, value)) if isinstance(value, list) else "" if value is None else f"{value:,}"

    columns = ("weights", "parameters", "bytes")
    yield from _table(
        ("layer", *(f"{name}, {of}" for name in columns for of in ("full", "this file"))),
        (
            (a.get("layer") or b.get("layer"), *(said(layer.get(name)) for name in columns for layer in (a, b)))
            for a, b in pairs
        ),
    )


def _machine(facts: Facts) -> Iterator[str]:
    machine, memory = facts["hardware"], words.size(facts["hardware"]["memory_bytes"])
    yield f"- {machine['cpu']}, {machine['cores']} cores usable, {memory}, {machine['system']}"
    yield "- " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    if not facts["packages"]:
        yield "- of the environment no package is known, nor its licence"
    for package in facts["packages"]:
        name, version = package["package"], package["version"]
        licence = f"licence {package['licence'] or 'unknown'}"
        about = f"{name} {version}" if version else f"{name}, which is not installed as a package"
        yield f"- the environment needs {about}: {licence}"
