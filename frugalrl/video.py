"""An episode as a film: a GIF with Pillow, an MP4 with the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UsageError, one_line

FRAMES_PER_SECOND = 50
NEEDS = {".gif": ("PIL.Image", "Pillow"), ".mp4": ("imageio_ffmpeg", "imageio-ffmpeg")}


def writer(path: Path) -> Callable[[Sequence[np.ndarray]], None]:
    """What writes frames [height, width, 3] of uint8 to `path`.

    Raises UsageError if that cannot be, before there is anything to write.
    """
    if path.suffix.lower() not in NEEDS:
        raise UsageError(f"--video {path}: write a .gif or an .mp4")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--video {path}: there is no folder {path.parent}")
    module, package = NEEDS[path.suffix.lower()]
    try:
        library = import_module(module)
    except ImportError:
        raise UsageError(f"--video needs {package}, which is not installed: pip install 'frugalrl[video]'") from None
    write = _gif if module == "PIL.Image" else _mp4
    return lambda frames: write(library, path, frames)


def _gif(library: Any, path: Path, frames: Sequence[np.ndarray]) -> None:
    # every second frame: browsers slow down what is faster than 50 pictures a second
    pictures = [library.fromarray(frame) for frame in frames[::2]]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=2000 / FRAMES_PER_SECOND, loop=0)


def _mp4(library: Any, path: Path, frames: Sequence[np.ndarray]) -> None:
    height, width = (side - side % 2 for side in frames[0].shape[:2])  # what most players need
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FRAMES_PER_SECOND), "-i", "-")
    try:
        line = [library.get_ffmpeg_exe(), "-y", "-loglevel", "error", *raw, "-pix_fmt", "yuv420p", str(path.absolute())]
        # not by write_frames: it forks, which JAX's threads do not bear
        with subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as ffmpeg:
            pictures = b"".join(np.ascontiguousarray(frame[:height, :width]).tobytes() for frame in frames)
            _, said = ffmpeg.communicate(pictures)
        if ffmpeg.returncode:
            raise RuntimeError(said.decode(errors="replace").strip() or f"it ended with {ffmpeg.returncode}")
    except (OSError, RuntimeError) as error:  # no ffmpeg for this system, or one that ends
        raise UsageError(f"--video {path}: ffmpeg failed ({one_line(error)}): write a .gif") from None
