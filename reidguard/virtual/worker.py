"""Image files rendered in this process or in worker processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from PIL import Image

from reidguard.data.dataset import CountCallback
from reidguard.virtual.render import render_person

__all__ = ["RenderJob", "render_files"]

MIN_IMAGES = 100  # with fewer images, starting another process costs more than it saves


@dataclass(frozen=True)
class RenderJob:
    """A file, and the arguments of :func:`render_person` for its image."""

    path: str
    domain: str
    identity: int
    camera: int
    viewpoint: int | None
    shot: int
    height: int
    seed: int

    def run(self) -> None:
        """Render the image and save it as PNG."""
        arguments = asdict(self)
        path, domain = arguments.pop("path"), arguments.pop("domain")
        Image.fromarray(render_person(domain, **arguments)).save(path, compress_level=1)


def main() -> None:
    """Run the jobs that standard input lists as JSON; print a line after each."""
    for fields in json.load(sys.stdin):
        RenderJob(**fields).run()
        print(flush=True)  # fails, and so ends this process, when the parent has ended


def render_files(
    jobs: Sequence[RenderJob],
    *,
    processes: int | None = None,
    progress: CountCallback | None = None,
) -> None:
    """Run jobs in this process, or in worker processes.

    Args:
        jobs: Jobs, best sorted by camera, so that a process needs few backdrops.
        processes: Number of processes. None takes 1 for few images, else one per core, 8 at most:
            rendering is many small steps of Python, so threads would not help.
        progress: Called with (images done, images in all).

    Raises:
        OSError: If a file cannot be written, or a worker process fails.
    """
    processes = _processes(len(jobs)) if processes is None else processes
    if processes == 1:
        for done, job in enumerate(jobs, 1):
            job.run()
            if progress is not None:
                progress(done, len(jobs))
        return
    bounds = [len(jobs) * i // processes for i in range(processes + 1)]
    counts: SimpleQueue[int] = SimpleQueue()
    children = []
    try:
        for start, stop in itertools.pairwise(bounds):
            children.append(_start(jobs[start:stop]))
            threading.Thread(target=_listen, args=(children[-1], counts), daemon=True).start()
        done = ended = 0
        while ended < len(children):
            count = counts.get()
            ended += count == 0
            done += count
            if progress is not None and count:
                progress(done, len(jobs))
        for child in children:
            if status := child.wait():
                lines = child.stderr.read().strip().splitlines() if child.stderr else []
                raise OSError(f"a rendering process failed: {lines[-1] if lines else status}")
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _processes(images: int) -> int:
    if images < MIN_IMAGES or not sys.executable:
        return 1
    with contextlib.suppress(AttributeError):  # Linux only
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def _start(jobs: Sequence[RenderJob]) -> subprocess.Popen[str]:
    # Not multiprocessing: its children start the caller's script again, guarded or not.
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stream:
        json.dump([asdict(job) for job in jobs], stream)
        stream.seek(0)
        return subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=stream,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            text=True,
        )


def _listen(child: subprocess.Popen[str], counts: SimpleQueue[int]) -> None:
    assert child.stdout is not None
    for _ in child.stdout:
        counts.put(1)
    counts.put(0)
