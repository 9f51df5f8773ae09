"""A trained policy on the Hugging Face Hub: the policy folder, what it reached and cost, and a card that tells it.

What is uploaded is put together in a folder first, without the network; only `push` needs `huggingface_hub`.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import policy
from .errors import BadFile, RunFailed, UsageError, one_line
from .monitor import receipt, words
from .monitor.files import read_json, replace

FILES = ("config.json", "receipt.json", "rows.jsonl", "report.html")  # beside policy/
NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def push(run: str | Path, repo: str, private: bool = False) -> str:
    """Upload the policy of a run folder to the repository `repo` (USER/NAME), and return its address.

    The token is that of `hf auth login` or HF_TOKEN. Raises UsageError for a wrong call and BadFile for a run without a
    policy, both before anything is uploaded; RunFailed if the upload fails.
    """
    if not NAME.fullmatch(repo):
        raise UsageError(f"REPO must be USER/NAME, got {repo!r}")
    if find_spec("huggingface_hub") is None:
        raise UsageError("push needs a package that is not installed: pip install 'frugalrl[hub]'")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(run), repo, Path(folder))
        api = import_module("huggingface_hub").HfApi()
        try:
            made = api.create_repo(repo, exist_ok=True, private=private or None)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Policy trained with FrugalRL")
        except Exception as error:  # of the network, or of the server
            raise RunFailed(f"the upload to {repo} failed: {one_line(error)}", None) from error
    return str(made)


def prepare(run: Path, repo: str, folder: Path) -> None:
    """Put what `push` uploads into `folder`: a policy that can be read, and what is told of it; nothing else.

    Raises BadFile if the run has no policy or a file is damaged, or is a link, which may lead anywhere.
    """
    source = run / "policy" if (run / "policy").is_dir() else run
    card, _ = policy.read(source)
    files = {run / name: folder / name for name in FILES}
    for structure in ("", *policy.structures(source)):
        _, weights = policy.read(source / structure)
        names = ("policy.json", *(f"seed-{k}.npz" for k in range(len(weights))))
        files |= {source / structure / name: folder / "policy" / structure / name for name in names}
    for link in (path for file in files for path in (file, file.parent) if path.is_symlink() and path != run):
        raise BadFile(f"{link} is a link: put what it leads to in its place, if that is to be uploaded")
    for file, to in files.items():
        if file.is_file():
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
    config, made = read_json(run / "config.json") or {}, receipt.read(run / "receipt.json") or {}
    replace(folder / "README.md", "\n".join(_page(repo, card, config, made)) + "\n")


def _page(repo: str, card: policy.Card, config: dict[str, Any], made: dict[str, Any]) -> Iterator[str]:
    """The card: what the Hub reads, then what people do."""
    yield "---"
    yield from _header(card, made)
    yield "---"
    yield f"# {card.agent} on {card.env}"
    yield ""
    yield f"Trained with FrugalRL {(made.get('versions') or {}).get('frugalrl') or ''}".rstrip() + "."
    yield ""
    if made:
        yield "| | |"
        yield "|---|---|"
        yield from (f"| {_cell(label)} | {_cell(text)} |" for label, text in receipt.entries(made))
        yield ""
        if not made.get("finished", True):
            yield "The run was stopped before its end."
            yield ""
    yield "`policy/` holds NumPy weights for each training seed; nothing is pickled."
    yield ""
    yield "```python"
    yield "import frugalrl"
    yield "from huggingface_hub import snapshot_download"
    yield ""
    yield f"policy = frugalrl.load(snapshot_download({json.dumps(repo)}))"
    yield f"action = policy.predict(obs)  # obs: {card.obs.dtype} of shape {tuple(card.obs.shape)}"
    yield "```"
    options = config.get("env_options")
    if options:
        yield ""
        yield f"The environment was set up with `{json.dumps(options, sort_keys=True)}`."


def _header(card: policy.Card, made: dict[str, Any]) -> Iterator[str]:
    """YAML, of strings as JSON has them, which YAML reads alike."""
    yield "library_name: frugalrl"
    yield f"tags: {json.dumps(['reinforcement-learning', 'frugalrl', card.agent, card.env])}"
    returns = receipt.returns(made)
    if returns is None:
        return
    yield "model-index:"
    yield f"- name: {json.dumps(card.agent)}"
    yield "  results:"
    yield "  - task: {type: reinforcement-learning, name: reinforcement-learning}"
    yield f"    dataset: {{name: {json.dumps(card.env)}, type: {json.dumps(card.env)}}}"
    yield "    metrics:"
    yield f"    - {{type: mean_reward, name: IQM of greedy returns, value: {json.dumps(words.interval(returns))}}}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
