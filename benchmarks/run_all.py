"""All figures with one command: python benchmarks/run_all.py.

Takes about an hour on two quiet cores. Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS; each result
lies in benchmarks/results/ with its command, commit and data fingerprint.
"""

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("speed.py", "ranking.py", "attacks.py", "parametrisations.py")

if __name__ == "__main__":
    here = Path(__file__).parent
    failed = []
    for script in SCRIPTS:
        print(f"== {script}", flush=True)
        if subprocess.run([sys.executable, str(here / script)], check=False).returncode:
            failed.append(script)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
