"""Measure all results with one command: python benchmarks/run_all.py.

Takes some hours on two quiet cores, most of them for meta.py. Needs REIDGUARD_DATA and
REIDGUARD_WEIGHTS; each result is written to benchmarks/results/ with its command, commit and data
fingerprints.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

# Target models of transferred attacks, trained by `reidguard train` as docs/results.rst says.
TARGETS = (
    "--target market_resnet18=runs/market_resnet18/model.safetensors "
    "--target campus_resnet18=runs/campus_resnet18/model.safetensors@virtual:campus"
)
OTHERS = (
    "--target market_regnetx=runs/market_regnetx/model.safetensors "
    "--target campus_resnet18=runs/campus_resnet18/model.safetensors@virtual:campus"
)
SURROGATE = "--surrogate runs/campus_resnet18/model.safetensors"
NETWORKS = " ".join(
    f"--model '{name}' runs/market_{short}/model.safetensors runs/campus_{short}/model.safetensors"
    for name, short in (
        ("OSNet x0.25", "osnet025"),
        ("OSNet x0.5", "osnet05"),
        ("RegNetX-200MF", "regnetx"),
    )
)
SCRIPTS = (
    "speed.py",
    "learners.py",
    "ranking.py",
    "virtual.py",
    "attacks.py",
    "parametrisations.py",
    "universal.py",
    "budgets.py",
    f"transfer.py {SURROGATE} {OTHERS}",
    f"instance.py {SURROGATE}",
    "inner_steps.py",
    "certificates.py",
    "detection.py",
    "backbones.py",
    "adapters.py",
    "protocols.py",
    f"meta.py --keep runs/meta --cosines --seeds 0 1 2 {TARGETS}",
    f"settings.py --keep runs/settings {NETWORKS}",
    f"variations.py {TARGETS}",
    "defenses.py --keep runs/defenses --attack runs/meta/combinatorial-maml-0.safetensors",
    "hardening.py --keep runs/hardening",
    "-m benchmarks.paper all --stand-in --out runs/paper_stand_in --results paper_stand_in",
    "-m benchmarks.paper all --stand-in --data market1501:$REIDGUARD_DATA --blur --query-every 8 "
    "--model Market-IDE=runs/market_osnet025/model.safetensors --only-given-models "
    "--out runs/paper_market --results paper_market",
    "page.py",
)

if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    failed = []
    for script in SCRIPTS:
        print(f"== {script}", flush=True)
        arguments = shlex.split(os.path.expandvars(script))
        if arguments[0] != "-m":
            arguments[0] = f"benchmarks/{arguments[0]}"
        if subprocess.run([sys.executable, *arguments], cwd=root, check=False).returncode:
            failed.append(script)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
