"""Kills a fit with SIGKILL repeatedly, resumes it, and compares with an uninterrupted one.

Run as a program by test_kill.py. Children are forked from a process that has imported everything,
so that a kill costs milliseconds and may happen anywhere: in a step, in decoding, in a write.
"""

import random
import sys
import time
from pathlib import Path

import torch

from reidguard.attacks import CombinatorialAttack, load_attack
from reidguard.data import load_dataset
from reidguard.models import wrap_model
from reidguard.types import InputSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.interrupt import fork, kill_in_write, kill_repeatedly, status

SIZE = (32, 16)


def learn(folder, root, write=None):
    """Fit, and save the result; die in the middle of a write if its number is given."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, stride=2), torch.nn.Tanh())
    model = wrap_model(network, input_spec=InputSpec(size=SIZE), metric="euclidean")
    kill_in_write(write)
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


def main():
    root, work, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    (work / "alone").mkdir()
    (work / "killed").mkdir()
    began = time.monotonic()
    assert status(fork(learn, work / "alone", root)) == 0
    length = time.monotonic() - began

    def start_again():
        (work / "killed" / "checkpoint").unlink()
        return False

    done, in_write = kill_repeatedly(
        lambda write: fork(learn, work / "killed", root, write),
        kills,
        draw=random.Random(seed),
        writes=3,
        longest=length / 4,
        finished=start_again,
    )
    assert status(fork(learn, work / "killed", root)) == 0

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
