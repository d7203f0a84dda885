"""The source distribution, the wheel and the example plugins, in a fresh virtual environment.

Nothing is fetched: they are installed without their dependencies, which the environment then finds
where this one has them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RUN = """
import sys
from pathlib import Path
import torch, reidguard as rg
from reidguard.testing import small_dataset

assert Path(rg.__file__).is_relative_to(sys.prefix), rg.__file__
with small_dataset() as people:
    flat = Path("flat")
    flat.mkdir()
    for split in ("train", "query", "gallery"):
        for n, s in enumerate(people.split(split)):
            (flat / f"{split}_{s.pid}_{s.camid}_{n}.png").write_bytes(s.path.read_bytes())
data = rg.load_dataset("example_flat:flat")
size = (32, 16)
torch.manual_seed(0)
model = rg.create_model("example_cnn", num_classes=data.num_train_pids, width=4, size=size)
short = dict(image_size=size, identities=4, images_per_identity=2)
rg.train_model(model, data, steps=3, **short)
model.save("model.safetensors")
model = rg.load_model("model.safetensors")
attack = rg.create_attack("example_tint", budget=rg.Budget(8 / 255))
attack.fit(model, data, steps=3, **short).save("tint.safetensors")
attack = rg.load_attack("tint.safetensors")
result = rg.evaluate(model, data, attack, rg.Protocol(image_size=size))
print(result.clean.mAP, result.attacked.ranking.mAP, 255 * result.attacked.linf)
"""


def run(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    ended = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def copied(source: Path, target: Path) -> Path:
    """Sources alone: building in the checkout would leave folders there, or use old ones."""
    leave = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".*", "tests", "docs")
    return Path(shutil.copytree(source, target, ignore=leave))


@pytest.mark.slow
def test_wheel_and_plugin_in_a_fresh_environment(tmp_path: Path) -> None:
    sources = tmp_path / "reidguard-source"
    sources.mkdir()
    copied(ROOT / "reidguard", sources / "reidguard")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    # What is released: a source distribution, and the wheel that is built of it.
    command = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", command, cwd=sources)
    (released,) = tmp_path.glob("reidguard-*.tar.gz")
    run(*pip, "wheel", *offline, "--wheel-dir", tmp_path, released, cwd=tmp_path)
    (wheel,) = tmp_path.glob("reidguard-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert "reidguard/py.typed" in inside
    assert "reidguard/testing/models.py" in inside
    assert not any(name.startswith(("tests", "examples", "benchmarks")) for name in inside)
    # everything that is not Python, too
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "reidguard").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= inside, sorted(wanted - inside)

    fresh = tmp_path / "fresh"
    run(sys.executable, "-m", "venv", "--without-pip", fresh, cwd=tmp_path)
    scripts = fresh / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    into = ("--python", python, "install", "--no-deps", "--no-index")
    run(*pip, *into, wheel, cwd=tmp_path)
    # A plain path: what is editable there stays out, as its own .pth files are not read.
    purelib = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    )
    (Path(purelib.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    before = run(scripts / "reidguard", "list", cwd=tmp_path)
    assert "example_" not in before

    plugins = copied(ROOT / "examples" / "plugins", tmp_path / "plugins-source")
    packages = sorted(path.parent for path in plugins.glob("*/pyproject.toml"))
    assert len(packages) == 8
    run(*pip, *into, "--no-build-isolation", *packages, cwd=tmp_path)
    after = run(scripts / "reidguard", "list", cwd=tmp_path)
    names = re.findall(r"^\| .*? \| .*? \| `(\w+)` \|", (plugins / "README.md").read_text(), re.M)
    assert len(names) == 8
    for name in names:
        assert f"  {name} " in after
    assert set(before.split()) < set(after.split())

    output = run(python, "-W", "error", "-c", RUN, cwd=tmp_path)
    clean, attacked, linf = map(float, output.split())
    assert 0 < attacked <= 1
    assert 0 < clean <= 1
    assert 0 < linf < 8.001
    suite = tmp_path / "suite"
    suite.mkdir()
    for test in plugins.glob("*/test_*.py"):
        shutil.copy(test, suite)
    shutil.copy(plugins / "conftest.py", suite)
    output = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite, cwd=tmp_path)
    assert " passed" in output
