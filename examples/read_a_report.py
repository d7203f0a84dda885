"""Make a page of some runs, and read it."""

import shlex

from reidguard.cli import main


def reidguard(line: str) -> None:
    """Run a command as the shell would: ``reidguard LINE``."""
    assert main(shlex.split(line)) == 0


# %%
# Three runs
# ~~~~~~~~~~
# A model is trained; an attack is learnt on it at ε = 8/255 and at half of that; the model is
# hardened against the stronger one. Each command fills a run folder: settings, versions and the
# command itself (``manifest.json``), a line for each step (``metrics.jsonl``), what was learnt, and
# the figures (``result.json``).

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
# The page
# ~~~~~~~~
# Virtual people are shown as they are. Pictures of real ones stay off the page unless ``--blur`` or
# ``--images`` asks for them.

reidguard("report runs/eps4 runs/eps8 runs/hardened --cache features --out report.html")

# %%
# :download:`The page that this made <report.html>` is one file that needs no network. From top to
# bottom:
#
# **Summary** says in one sentence for each run what the model finds before and after. Start there,
# and look at rank-1: of 100 queries, how often is the first image of the list the right person?
#
# **Results** has three rows for each run. *clean*; *attacked, float*: the attack's output;
# *attacked, 8-bit*: as an image file stores it. A large gap between the last two means that the
# attack lives below one grey level and would not survive being saved. L∞ is the largest change of
# any pixel in grey levels: it should say what the budget says.
#
# **Metrics over the budget ε** draws mAP and rank-1 over ε. A curve that rises again is a warning:
# more room should never help the model (see :doc:`/audit`).
#
# **Each run**: the loss should fall for a model, and for an attack; then the pattern, the colour
# cube, and people before and after. In the rank lists a solid blue frame and ✓ is the right person,
# a dashed orange one and ✗ someone else. *Found no more* shows what the attack does; *Still found*
# shows queries that stand in spite of it. The hardened model has each list three times: before the
# attack, after it, and after the defense. *Defended, yet lost* are its failures, worth a look: what
# do they have in common?
#
# **Provenance** has each command, commit and version, for whoever wants to repeat it.
