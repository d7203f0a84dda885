"""Make a report of several runs, and read it."""

import shlex

from reidguard.cli import main


def reidguard(line: str) -> None:
    """Run ``reidguard LINE`` as in a shell."""
    assert main(shlex.split(line)) == 0


# %%
# Three runs
# ~~~~~~~~~~
# A model is trained; an attack is learnt on it at ε = 8/255 and at half of that; the model is
# defended against the stronger one. Each command writes a run folder: settings, versions and the
# command itself (``manifest.json``), a line for each step (``metrics.jsonl``), the model or attack,
# and the results (``result.json``).

PEOPLE = "virtual:studio?identities=16&cameras=3"
SMALL = "--image-size 64x32 --images-per-identity 4 --cache features"
reidguard(
    f"train --data {PEOPLE} --model ide --model-set backbone=test_resnet --model-set size=64x32 "
    f"--steps 60 --lr 1e-3 {SMALL} --out runs/normal"
)
MODEL = "--model runs/normal/model.safetensors"
for eps in (4, 8):
    reidguard(
        f"attack --data {PEOPLE} {MODEL} --attack combinatorial --set size=64x32 --eps {eps}/255 "
        f"--steps 20 {SMALL} --out runs/eps{eps}"
    )
reidguard(
    f"defend --data {PEOPLE} {MODEL} --attack runs/eps8/attack.safetensors --defense adversarial "
    f"--steps 40 --lr 1e-3 {SMALL} --out runs/hardened"
)

# %%
# The report
# ~~~~~~~~~~
# Virtual people are shown as they are. Images of real people are shown only with ``--blur`` or
# ``--images``.

reidguard("report runs/eps4 runs/eps8 runs/hardened --cache features --out report.html")

# %%
# :download:`The report <report.html>` is one self-contained HTML file. From top to bottom:
#
# **The header** states the largest loss of mAP in one sentence, with a chart of all runs;
# **Summary** has one such sentence for each run. Start there, with rank-1: for how many of 100
# queries is the first image the right person?
#
# **Results** has three rows for each run: *clean*; *attacked, float*, the attack's output;
# *attacked, 8-bit*, saved as files. A large gap between the last two means that the attack depends
# on changes below one grey level and does not survive being saved. L∞ is the largest change of any
# pixel in grey levels: it should equal the budget.
#
# **Metrics over the budget ε** draws mAP and rank-1 over ε. A curve that rises again is a warning:
# a larger budget should never help the model (see :doc:`/audit`).
#
# **Each run**: the perturbation, the change of colours, and people before and after the attack. In
# the rank lists a solid blue frame and ✓ is the right person, a dashed orange one and ✗ someone
# else. Under *Rank-1 match lost* are queries on which the attack succeeds, under *Rank-1 match
# kept* those on which it fails. For the defended model each list is shown three times: before the
# attack, under it, and under it with the defense. Under *Rank-1 match lost despite the defense* are
# its failures: what do they have in common?
#
# **Provenance** has each command, commit and version, for repeating the runs, and the loss, which
# should fall for models and attacks.
