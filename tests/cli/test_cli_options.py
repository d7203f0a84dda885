"""Options from the command line and from files, help, and how errors are reported."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from fractions import Fraction
from io import BytesIO, TextIOWrapper

import pytest

from reidguard.attacks import ATTACKS
from reidguard.cli import main
from reidguard.cli.app import COMMANDS, parse
from reidguard.cli.commands.attack import DEFAULTS as LEARNING_DEFAULTS
from reidguard.defenses import DEFENSES
from reidguard.errors import InputError
from reidguard.learners import LEARNERS, PlainLearner
from reidguard.options import (
    DEFENSE_DEFAULTS,
    TRAIN_DEFAULTS,
    AttackOptions,
    FitOptions,
    TrainOptions,
)
from reidguard.schema import options_of
from reidguard.training.recipe import RECIPES

TARGET = ["--data", "virtual:studio", "--model", "ide"]


def attack(*arguments):
    return parse(["attack", *TARGET, *arguments])


@pytest.mark.parametrize("text", ["8/255", "0.03", "0", "1"])
def test_eps(text):
    assert attack("--eps", text).eps == pytest.approx(float(Fraction(text)), abs=0)


@pytest.mark.parametrize("text", ["8/0", "eight", "", "8/255/2"])
def test_eps_refuses(text):
    with pytest.raises(InputError, match=r"--eps.*8/255"):
        attack("--eps", text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=0.5", 0.5),
        ("a=1/4", 0.25),
        ("a=64x32", (64, 32)),
        ("a=true", True),
        ("a=[1, 2]", [1, 2]),
        ("a=resnet10t", "resnet10t"),
        ("a=x=y", "x=y"),
        ("a=", ""),
    ],
)
def test_key_value_options(text, value):
    assert attack("--set", text).set == {"a": value}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--set", "novalue"], "KEY=VALUE"),
        (["--set", "=1"], "KEY=VALUE"),
        (["--image-size", "256"], "HEIGHTxWIDTH"),
        (["--image-size", "0x4"], "image_size must be .*at least 1"),
        (["--lr", "0"], "lr must be .*above 0"),
        (["--lr", "inf"], "lr must be a finite number"),
        (["--lr", "x"], "no number"),
        (["--steps", "0"], "steps must be .*at least 1"),
        (["--steps", "1.5"], "not a whole number"),
        (["--diversity", "2"], "at most 1"),
        (["--dta", "x"], "--dta.*--data"),
        (["--epsilon=1"], "--epsilon.*--eps"),
        (["-z"], "-z"),
        (["--steps", "1", "--epochs", "1"], "exclusive.*--epochs.*--steps|exclusive.*--steps"),
        (["--steps", "1", "--steps", "2"], "--steps.*multiple times"),
        (["stray"], "stray"),
        (["--out"], "--out requires an argument"),
        (["--config", "/nowhere.toml"], "there is no file /nowhere.toml"),
    ],
)
def test_errors_on_the_command_line(argv, message):
    with pytest.raises(InputError, match=message):
        attack(*argv)


@pytest.mark.parametrize("name", ["a\udcff.csv", "\x1b[31m.csv", "a\u202eb.csv"])
def test_an_argument_that_no_file_could_hold_is_one_printable_line(name, capsys):
    assert main(["data", f"csv:{name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isascii()
    assert line.isprintable()
    assert "symbolic link" in line


def test_required_and_exclusive_options():
    with pytest.raises(InputError, match="--data"):
        parse(["attack", "--model", "ide"])
    with pytest.raises(InputError, match=r"exclusive.*--blur.*--images"):
        parse(["report", "run", "--blur", "--images"])
    with pytest.raises(InputError, match="FOLDER"):
        parse(["data", "export", "virtual:plaza"])


@pytest.mark.parametrize("suffix", ["toml", "yaml"])
def test_defaults_file_and_command_line(tmp_path, suffix):
    """The command line beats the file, which beats the defaults; pairs are merged by key."""
    file = tmp_path / f"c.{suffix}"
    if suffix == "toml":
        file.write_text(
            'data = "virtual:mall"\neps = "4/255"\ntensorboard = true\nepochs = 3\n'
            'image-size = "64x32"\n[set]\nsize = "64x32"\nresolution = 9\n'
        )
    else:
        pytest.importorskip("yaml")
        file.write_text(
            "data: virtual:mall\neps: 4/255\ntensorboard: true\nepochs: 3\n"
            "image-size: 64x32\nset:\n  size: 64x32\n  resolution: 9\n"
        )
    call = ["attack", "--model", "ide", "--config", str(file), "--eps", "2/255", "--steps", "5"]
    call += ["--set", "resolution=5"]
    options = parse(call)
    assert options.data == "virtual:mall"
    assert options.eps == 2 / 255
    assert options.tensorboard is True
    assert (options.steps, options.epochs) == (5, None)  # the two exclude each other
    assert options.image_size == (64, 32)
    assert options.set == {"size": (64, 32), "resolution": 5}
    assert options.explicit == {
        "data", "model", "eps", "tensorboard", "image_size", "steps", "set", "config"
    }  # fmt: skip
    assert options.argv == call

    plain = attack()
    assert (plain.eps, plain.tensorboard, plain.set, plain.steps) == (8 / 255, False, {}, None)
    assert plain.explicit == {"data", "model"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stpes = 3", "unknown key 'stpes': did you mean 'steps'"),
        ("eps = 'x'", "write 0.03 or 8/255"),
        ("steps = 0", "at least 1"),
        ("tensorboard = 1", "tensorboard must be true or false"),
        ("set = 3", "set must be a table"),
        ("attack = [1]", "attack is not valid .*expected str, got int"),
        ("data = ", "not TOML"),
        ("epochs = 1\nsteps = 2", "exclusive"),
        ('config = "x"', "unknown key 'config'"),
    ],
)
def test_errors_in_the_file(tmp_path, content, message):
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        attack("--config", str(file))


def test_options_of_the_library_are_options_of_the_commands():
    """Each with its default; the command line fills in the checkpoint and the callbacks itself."""
    train = parse(["train", *TARGET])
    for options, group in ((attack(), AttackOptions), (train, TrainOptions)):
        for name, option in options_of(group).items():
            if name not in ("checkpoint", "progress", "augment", "learner", "objective"):
                assert getattr(options, name) == option.default
    options = attack("--no-clip", "--momentum", "0.9", "--checkpoint-every", "7")
    assert options.of(AttackOptions, explicit=True) == {
        "clip": False, "momentum": 0.9, "checkpoint_every": 7
    }  # fmt: skip
    assert options.of(FitOptions, explicit=True) == {"checkpoint_every": 7}


def test_defaults_in_words_are_those_of_the_library():
    """Such as "85, agw 120": that of most, then the exceptions by name."""

    def assert_same(text, values):
        most, *exceptions = (part.split() for part in text.split(", "))
        expected = {name: float(value) for name, value in exceptions}
        assert expected.keys() <= values.keys()
        assert values == {name: expected.get(name, float(most[0])) for name in values}

    for name in ("epochs", "lr", "identities", "images_per_identity"):
        assert_same(TRAIN_DEFAULTS[name], {k: getattr(r, name) for k, r in RECIPES.items()})
    rates = {name: DEFENSES.get(name).default_lr for name in DEFENSES.list() if name != "blur"}
    assert_same(DEFENSE_DEFAULTS["lr"], rates)
    fitted = {name: ATTACKS.get(name).fit_defaults for name in ("delta", "color", "misrank", "uap")}
    for name in ("epochs", "momentum"):
        expected = {k: getattr(defaults, name) for k, defaults in fitted.items()}
        assert_same(LEARNING_DEFAULTS[name], expected)


def test_help_has_a_summary_and_examples(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == overview
    for command, summary in COMMANDS.items():
        assert re.search(rf"^ *{command} +{re.escape(summary)} *$", overview, re.MULTILINE)
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"usage: reidguard {command}" in text.lower()
        assert f"  reidguard {command}" in text.partition("examples:")[2]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_fast(command):
    """It does not import torch; the limit leaves room for a slow machine."""
    code = "import sys; from reidguard.cli import main; main(sys.argv[1:]); "
    code += "assert not {'torch', 'timm', 'numpy'} & sys.modules.keys()"
    began = time.perf_counter()
    arguments = [*filter(None, [command]), "--help"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    assert time.perf_counter() - began < 3


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_can_be_parsed(command, capsys):
    """Each example names only options that exist, with values that are accepted."""
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out.partition("examples:")[2].replace("\\\n", " ")
    calls = [line.split() for line in text.splitlines() if line.strip().startswith("reidguard ")]
    assert calls
    for _, name, *argv in calls:
        assert name == command
        assert parse([command, *shlex.split(" ".join(argv))]) is not None


def test_unknown_commands(refused, capsys):
    assert "did you mean 'attack'" in refused("attck")
    assert "did you mean '--version'" in refused("--versoin")
    assert 'Did you mean "attacks"' in refused("list", "atacks")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("reidguard ")


def test_unknown_names_end_in_one_line(refused, data, target, tmp_path):
    assert "Did you mean --steps" in refused("attack", *target, "--stpes", 3)
    assert "did you mean 'market1501'" in refused(
        "attack", "--data", "marke1501:/x", "--model", "ide"
    )
    assert "there is no folder /nowhere" in refused("data", "market1501:/nowhere")
    assert "did you mean 'ide'" in refused("evaluate", *data, "--model", "idee")
    assert "no file" in refused("evaluate", *data, "--model", tmp_path / "no.safetensors")
    assert "no file" in refused("evaluate", *data, "--model", "ide:/no.pth")
    assert "path after 'ide': is empty" in refused("evaluate", *data, "--model", "ide:")
    assert "did you mean 'delta'" in refused("attack", *target, "--attack", "dleta")
    assert "unknown learner" in refused("attack", *target, "--learner", "x")
    assert "unknown objective" in refused("attack", *target, "--objective", "x")
    assert "it takes: budget, size" in refused("attack", *target, "--set", "sizes=3")
    assert "resolution must be" in refused(
        "attack", *target, "--attack", "color", "--set", "resolution=abc"
    )
    assert "write --eps 8/255" in refused("attack", *target, "--set", "eps=0.1")
    assert "leave --model-set out" in refused("evaluate", *target, "--model-set", "size=64x32")
    assert "try cpu" in refused("evaluate", *target, "--device", "gpu")
    weights = tmp_path / "w.pth"
    weights.touch()
    assert "neither a safetensors nor a torch file" in refused(
        "evaluate", *data, "--model", weights
    )


def test_a_learner_of_two_domains_needs_the_second(target, refused, monkeypatch):
    class Both(PlainLearner):
        needs_meta_test = True

    monkeypatch.setitem(LEARNERS._factories, "both", Both)
    assert "--meta-data NAME:PATH" in refused("attack", *target, "--learner", "both")


def test_as_a_module_without_a_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "reidguard", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "reidguard COMMAND --help" in done.stdout


def test_an_encoding_without_greek(monkeypatch):
    output = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(output, encoding="ascii"))
    assert main(["list", "attacks"]) == 0
    assert b"at most ?" in output.getvalue()
