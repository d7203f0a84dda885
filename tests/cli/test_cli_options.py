from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest

from reidguard.cli import main
from reidguard.cli.app import COMMANDS
from reidguard.cli.options import Parser, epsilon, image_size, key_value, pathname, rate
from reidguard.errors import InputError
from reidguard.learners import LEARNERS, PlainLearner


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), ("0", 0.0), ("1", 1.0)]
)
def test_epsilon(text, value):
    assert epsilon(text) == value


@pytest.mark.parametrize("text", ["8", "8/0", "eight", "", "nan", "8/255/2"])
def test_epsilon_refuses(text):
    with pytest.raises(InputError, match="8/255"):
        epsilon(text)


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
def test_key_value(text, value):
    assert key_value(text) == ("a", value)


def test_malformed_values():
    for kind, text in [
        (key_value, "novalue"),
        (key_value, "=1"),
        (image_size, "256"),
        (image_size, "0x4"),
        (rate, "0"),
        (rate, "inf"),
        (rate, "x"),
        (epsilon, "-1/255"),
    ]:
        with pytest.raises(InputError):
            kind(text)


def parser() -> Parser:
    made = Parser("test", "do something", "  none")
    made.option("--data", "help", metavar="D", required=True)
    made.option("--eps", "help", epsilon, metavar="X", default=8 / 255)
    made.option("--steps", "help", int, metavar="N")
    made.option("--epochs", "help", int, metavar="N")
    made.exclusive("epochs", "steps")
    made.option("--config", "help", pathname, metavar="F")
    made.pairs("--set", "help")
    made.flag("--fast", "help")
    return made


def test_defaults_file_and_command_line(tmp_path):
    """The command line beats the file, which beats the defaults; pairs are merged by key."""
    file = tmp_path / "c.toml"
    file.write_text(
        'data = "virtual:studio"\neps = "4/255"\nfast = true\nepochs = 3\n'
        '[set]\nsize = "64x32"\nresolution = 9\n'
    )
    call = ["--config", str(file), "--eps", "2/255", "--steps", "5", "--set", "resolution=5"]
    options = parser().read(call)
    assert options.data == "virtual:studio"
    assert options.eps == 2 / 255
    assert options.fast is True
    assert (options.steps, options.epochs) == (5, None)  # the two exclude each other
    assert options.set == {"size": (64, 32), "resolution": 5}
    assert options.given == {"data", "eps", "fast", "steps", "set", "config"}
    assert options.argv == ["test", *call]

    plain = parser().read(["--data", "x"])
    assert (plain.eps, plain.fast, plain.set, plain.steps) == (8 / 255, False, {}, None)
    assert plain.given == {"data"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stpes = 3", "unknown key 'stpes': did you mean 'steps'"),
        ("eps = 8", "write 8/255"),
        ("fast = 1", "fast must be true or false"),
        ("set = 3", r"set must be a table: \[set\]"),
        ("data = [1]", "data must be text or a number"),
        ("data = ", "not TOML"),
        ("epochs = 1\nsteps = 2", "--epochs and --steps exclude each other"),
        ('config = "x"', "unknown key 'config'"),
    ],
)
def test_mistakes_in_the_file(tmp_path, content, message):
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        parser().read(["--data", "x", "--config", str(file)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--data must be given"),
        (["--dta", "x"], "unknown option --dta: did you mean '--data'"),
        (["--dat", "x"], "unknown option --dat: did you mean '--data'"),  # no abbreviations
        (["--data=x", "--epsilon=1"], "unknown option --epsilon: did you mean '--eps'"),
        (["--data", "x", "-z"], "unknown option -z"),
        (["--data", "x", "--eps", "8"], "for 8 grey levels write 8/255"),
        (["--data", "x", "--steps", "1", "--epochs", "1"], "exclude each other"),
        (["--data", "x", "stray"], "stray"),
        (["--data", "x", "--config", "/nowhere.toml"], "cannot read /nowhere.toml"),
    ],
)
def test_mistakes_on_the_command_line(argv, message):
    with pytest.raises(InputError, match=message):
        parser().read(argv)


def test_help_teaches(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == overview
    for command, summary in COMMANDS.items():
        assert re.search(rf"^  {command} +{re.escape(summary)}$", overview, re.MULTILINE)
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"usage: reidguard {command}" in text
        assert f"  reidguard {command}" in text.partition("examples:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_can_be_parsed(command, capsys):
    """Each example names only options that exist, with values that are accepted."""
    made = importlib.import_module(f"reidguard.cli.{command}").parser(COMMANDS[command])
    text = made.format_help().partition("examples:")[2].replace("\\\n", " ")
    calls = [line.split() for line in text.splitlines() if line.strip().startswith("reidguard ")]
    assert calls
    for _, name, *argv in calls:
        assert name == command
        made.read(shlex.split(" ".join(argv)))


def test_unknown_commands(refused, capsys):
    assert "did you mean 'attack'" in refused("attck")
    assert "did you mean '--version'" in refused("--versoin")
    assert "did you mean 'attacks'" in refused("list", "atacks")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("reidguard ")


def test_unknown_names_end_in_one_line(refused, data, victim, tmp_path):
    assert "did you mean '--steps'" in refused("attack", "--stpes", 3)
    assert "did you mean 'market1501'" in refused(
        "attack", "--data", "marke1501:/x", "--model", "ide"
    )
    assert "there is no folder /nowhere" in refused("data", "market1501:/nowhere")
    assert "did you mean 'ide'" in refused("evaluate", *data, "--model", "idee")
    assert "no file" in refused("evaluate", *data, "--model", tmp_path / "no.safetensors")
    assert "no file" in refused("evaluate", *data, "--model", "ide:/no.pth")
    assert "path after 'ide': is empty" in refused("evaluate", *data, "--model", "ide:")
    assert "did you mean 'delta'" in refused("attack", *victim, "--attack", "dleta")
    assert "unknown learner" in refused("attack", *victim, "--learner", "x")
    assert "unknown objective" in refused("attack", *victim, "--objective", "x")
    assert "it takes: budget, size" in refused("attack", *victim, "--set", "sizes=3")
    assert "--set" in refused("attack", *victim, "--attack", "color", "--set", "resolution=abc")
    assert "write --eps 8/255" in refused("attack", *victim, "--set", "eps=0.1")
    assert "leave --model-set out" in refused("evaluate", *victim, "--model-set", "size=64x32")
    assert "try cpu" in refused("evaluate", *victim, "--device", "gpu")
    weights = tmp_path / "w.pth"
    weights.touch()
    assert f"--model NAME:{weights}" in refused("evaluate", *data, "--model", weights)


def test_a_learner_of_two_domains_asks_for_the_second(victim, refused, monkeypatch):
    class Both(PlainLearner):
        needs_meta_test = True

    monkeypatch.setitem(LEARNERS._factories, "both", Both)
    assert "--meta-data NAME:PATH" in refused("attack", *victim, "--learner", "both")


def test_as_a_module_without_a_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "reidguard", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "reidguard COMMAND --help" in done.stdout


def test_an_encoding_without_greek():
    done = subprocess.run(
        [sys.executable, "-m", "reidguard", "list", "attacks"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"at most ?" in done.stdout


def test_the_reader_of_the_output_goes_away():
    """As in ``reidguard list | head -1``: no traceback, and the code that a SIGPIPE would give."""
    with subprocess.Popen(
        [sys.executable, "-m", "reidguard", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
