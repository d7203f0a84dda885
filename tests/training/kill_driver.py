"""Kills a fit with SIGKILL again and again, resumes it, and compares with one left alone.

Run as a program by test_kill.py. Children are forked from a process that has imported everything,
so that a kill costs milliseconds and may fall anywhere: in a step, in decoding, in a write.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from reidguard import storage
from reidguard.attacks import CombinatorialAttack, load_attack
from reidguard.data import load_dataset
from reidguard.models import wrap_model
from reidguard.types import InputSpec

SIZE = (32, 16)
write_whole_file = storage.safetensors.torch.save_file


def learn(folder, root, dying_write=None):
    """Fit, and save the result; with ``dying_write`` die in the middle of that write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, stride=2), torch.nn.Tanh())
    model = wrap_model(network, input_spec=InputSpec(size=SIZE), metric="euclidean")
    writes = 0

    def write_half_and_die(tensors, path, metadata):
        nonlocal writes
        writes += 1
        write_whole_file(tensors, path, metadata=metadata)
        if writes == dying_write:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    storage.safetensors.torch.save_file = write_half_and_die
    attack = CombinatorialAttack(None, 6, SIZE)
    attack.fit(
        model,
        load_dataset("virtual", root),
        epochs=4,
        identities=4,
        images_per_identity=3,
        image_size=SIZE,
        checkpoint=folder / "checkpoint",
        checkpoint_every=1,
    )
    attack.save(folder / "attack.safetensors")


def child(*arguments):
    pid = os.fork()
    if pid == 0:
        try:
            learn(*arguments)
        except BaseException as error:
            print("child:", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def main():
    root, work, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    draw = random.Random(seed)
    (work / "alone").mkdir()
    (work / "killed").mkdir()
    began = time.monotonic()
    assert os.waitpid(child(work / "alone", root), 0)[1] == 0
    length = time.monotonic() - began

    done = in_write = 0
    while done < kills:
        # Half of the kills fall inside a write, the others at any time.
        dying_write = draw.randint(1, 3) if done % 2 else None
        pid = child(work / "killed", root, dying_write)
        if dying_write is None:
            time.sleep(draw.uniform(0, length / 4))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            done += 1
            in_write += dying_write is not None
        else:
            assert os.WEXITSTATUS(status) == 0, "a resumed fit failed"
            (work / "killed" / "checkpoint").unlink()  # it got to its end: once more from the start
    assert os.waitpid(child(work / "killed", root), 0)[1] == 0

    alone, killed = (
        load_attack(work / name / "attack.safetensors") for name in ("alone", "killed")
    )
    same = all(
        torch.equal(a, b)
        for a, b in zip(alone.state_dict().values(), killed.state_dict().values(), strict=True)
    )
    assert alone.delta.delta.abs().max() > 0
    files = sorted(path.name for path in (work / "killed").iterdir())
    print(f"kills {done} in_write {in_write} same {same} files {files}")


if __name__ == "__main__":
    main()
