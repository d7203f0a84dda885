from __future__ import annotations

import json
import math
import re
from io import StringIO
from pathlib import Path

import pytest
import torch

from reidguard.attacks import DeltaAttack, load_attack
from reidguard.cli import main
from reidguard.cli.progress import Display
from reidguard.data import load_dataset
from reidguard.evaluation import Protocol, evaluate, verify
from reidguard.models import load_model
from reidguard.tables import Table
from reidguard.training import MISGD, Progress
from reidguard.virtual import write_virtual

SIZE = (64, 32)


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())["evaluation"]


def steps_of(folder: Path) -> list[int]:
    return [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def attacked(target, tmp_path_factory) -> Path:
    """The run folder of a finished delta attack of 6 steps, with its images in images/."""
    out = tmp_path_factory.mktemp("runs") / "delta"
    call = ["attack", *target, "--steps", "6", "--query-every", "3", "--out", str(out)]
    assert main([*call, "--save-images", str(out / "images")]) == 0
    return out


def test_train_writes_a_run(trained, studio):
    assert steps_of(trained) == list(range(1, 13))
    model = load_model(trained / "model.safetensors")
    assert model.provenance["steps"] == 12
    expected = evaluate(model, studio, protocol=Protocol(image_size=SIZE)).to_dict()
    saved = result_of(trained)
    assert saved["clean"] == expected["clean"]
    assert saved["weights"] == expected["weights"]
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["started"] <= manifest["finished"]
    assert manifest["command"][:2] == ["reidguard", "train"]
    assert manifest["settings"]["data"]["train"] == studio.fingerprint("train")
    assert manifest["settings"]["recipe"]["seed"] == 0
    assert {"reidguard", "torch", "python"} <= manifest["versions"].keys()
    report = (trained / "result.md").read_text()
    assert "learnt in 12 steps, " in report
    assert f"`reidguard train --data {manifest['options']['data']} --model ide " in report


def test_the_same_command_again_reuses(trained, train_call, capsys):
    before = contents(trained)
    assert main([*train_call, "--out", str(trained)]) == 0
    output = capsys.readouterr()
    assert "already finished" in output.err
    assert (trained / "result.md").read_text().rpartition("`reidguard")[0] in output.out
    assert contents(trained) == before


def test_other_settings_are_refused(trained, train_call, refused):
    line = refused(*train_call, "--seed", "1", "--out", trained)
    assert "recipe seed: 0 stored, 1 now" in line
    assert "another folder with --out" in line
    assert "query_every: 1 stored, 2 now" in refused(
        *train_call, "--query-every", "2", "--out", trained
    )


def test_attack_gives_the_results_of_the_library(attacked, trained, studio, capsys):
    model = load_model(trained / "model.safetensors")
    attack = load_attack(attacked / "attack.safetensors")
    assert isinstance(attack, DeltaAttack)
    assert attack.size == SIZE
    own = DeltaAttack(size=SIZE).fit(model, studio, steps=6, image_size=SIZE)
    assert torch.equal(attack.delta, own.delta)
    expected = evaluate(model, studio, own, Protocol(image_size=SIZE), query_every=3).to_dict()
    saved = result_of(attacked)
    for part in ("clean", "attacked", "attacked_8bit"):
        assert saved[part] == expected[part]
    assert saved["attacked"]["mAP"] < saved["clean"]["mAP"]
    assert "one query in 3" in (attacked / "result.md").read_text()
    assert steps_of(attacked) == [1, 2, 3, 4, 5, 6]


def test_saved_images_give_exactly_the_8bit_metrics(attacked, target, tmp_path, refused, capsys):
    """The saved images are those of the queries that were evaluated."""
    images = attacked / "images"
    assert len(list(images.glob("*.png"))) == 16
    call = ["evaluate", *target, "--query", str(images)]
    assert "32 of 48 are missing" in refused(*call)
    call += ["--query-every", "3"]
    capsys.readouterr()
    assert main([*call, "--out", str(tmp_path / "again")]) == 0
    report = (tmp_path / "again" / "result.md").read_text()
    assert report.rpartition("`reidguard")[0] in capsys.readouterr().out
    assert report.splitlines()[0].endswith("one query in 3)")
    assert f"| images of {images} " in report
    again, before = result_of(tmp_path / "again"), result_of(attacked)
    assert again["attacked_8bit"] == before["attacked_8bit"]
    assert again["clean"] == before["clean"]
    assert again["attacked"] is None
    assert again["dataset"]["query_folder"] == str(images)


def test_evaluate_without_a_folder_only_prints(target, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *target]) == 0
    assert re.search(r"\| clean +\|", capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_reranking(target, trained, studio, tmp_path, refused, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert main(["evaluate", *target, "--rerank", *out]) == 0
    assert "re-ranked" in capsys.readouterr().out
    model = load_model(trained / "model.safetensors")
    expected = evaluate(model, studio, None, Protocol(image_size=SIZE, rerank=True))
    assert result_of(tmp_path / "run")["clean"] == expected.to_dict()["clean"]
    assert "rerank" in refused("evaluate", *target, *out)  # another run's folder


def test_mirror_images_and_several_images(
    attacked, target, trained, studio, refused, capsys, tmp_path
):
    assert main(["evaluate", *target, "--flip", "--multi-query", "--amp"]) == 0
    shown = capsys.readouterr().out
    assert "mirrored images; several images" in shown
    model = load_model(trained / "model.safetensors")
    protocol = Protocol(image_size=SIZE, flip=True, multi_query=True, amp=True)
    mean = evaluate(model, studio, None, protocol).clean.mAP
    assert f"| {100 * mean:.1f} |" in shown
    call = ["attack", *target, "--load", attacked / "attack.safetensors", "--multi-query"]
    assert "leave one of them out" in refused(*call, "--save-images", "images")
    out = ("--out", tmp_path / "suite")
    assert "without rerank" in refused("autoattack", *target, "--multi-query", *out)


def test_features_are_cached_in_the_folder_of_the_option(target, private_cache, tmp_path, capsys):
    assert main(["evaluate", *target]) == 0
    assert len(list(private_cache.glob("*.safetensors"))) == 2  # gallery and query
    assert "evaluating 176/176" in capsys.readouterr().err
    assert main(["evaluate", *target]) == 0
    assert "evaluating 48/48" in capsys.readouterr().err  # the gallery was cached
    assert main(["evaluate", *target, "--cache", str(tmp_path / "mine")]) == 0
    assert len(list((tmp_path / "mine").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_a_warning(target, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["evaluate", *target]) == 0
    assert "reidguard: warning: cannot make the feature folder" in capsys.readouterr().err


def test_a_folder_is_named_after_the_settings(target, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call = ["attack", *target, "--steps", "1", "--attack", "color", "--set", "resolution=3"]
    for _ in range(2):
        assert main([*call, "--cube", "a.cube"]) == 0
    assert "already finished" in capsys.readouterr().err
    assert main([*call, "--eps", "4/255"]) == 0
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("attack-color-virtual-") for folder in folders)
    assert "LUT_3D_SIZE 3" in Path("a.cube").read_text()
    budgets = {round(255 * load_attack(f / "attack.safetensors").budget.eps) for f in folders}
    assert budgets == {4, 8}


def test_a_stacked_attack_reports_twice_the_budget(target, studio, tmp_path, capsys):
    call = ["attack", *target, "--steps", "1", "--attack", "combinatorial"]
    call += ["--set", "stacked=true", "--set", "resolution=3", "--eps", "4/255"]
    assert main([*call, "--out", str(tmp_path / "r")]) == 0
    assert "ε = 8/255" in capsys.readouterr().out
    attack = load_attack(tmp_path / "r" / "attack.safetensors")
    assert verify(attack, studio, image_size=SIZE).passed
    assert math.isclose(255 * attack.budget.eps, 8)


def test_options_that_do_not_fit(attacked, target, refused, tmp_path):
    load = ["--load", attacked / "attack.safetensors"]
    assert "leave out --eps, --steps" in refused(
        "attack", *target, *load, "--steps", 3, "--eps", "1/255"
    )
    assert "no colour table" in refused("attack", *target, *load, "--cube", tmp_path / "x")
    assert "no colour table" in refused("attack", *target, "--cube", tmp_path / "x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    assert "holds other files, such as letter.txt" in refused(
        "attack", *target, "--out", tmp_path / "other"
    )
    assert "choose a new or empty folder" in refused(
        "evaluate", *target, "--out", tmp_path / "other"
    )
    assert "match the queries" in refused("evaluate", *target, "--query", tmp_path)


def test_a_config_file_gives_options(target, tmp_path, refused, capsys):
    file = tmp_path / "attack.toml"
    file.write_text('attack = "color"\neps = "2/255"\nsteps = 1\n[set]\nresolution = 4\n')
    call = ["attack", *target, "--config", str(file), "--eps", "3/255"]
    assert main([*call, "--out", str(tmp_path / "r")]) == 0
    attack = load_attack(tmp_path / "r" / "attack.safetensors")
    assert attack.config() == {"eps": 3 / 255, "resolution": 4}
    assert json.loads((tmp_path / "r" / "manifest.json").read_text())["options"]["steps"] == 1
    file.write_text("stesp = 1")
    assert f"{file}: unknown key 'stesp': did you mean 'steps'" in refused(*call)


def test_training_only_data_is_learnt_and_not_evaluated(studio_root, tmp_path, capsys):
    lines = ["path,pid,camid,split"]
    for image in sorted((studio_root / "bounding_box_train").glob("*.png")):
        lines.append(f"{image},{int(image.name[:4])},{image.name[6]},train")
    (tmp_path / "people.csv").write_text("\n".join(lines))
    call = ["train", "--data", f"csv:{tmp_path / 'people.csv'}", "--model", "ide"]
    call += ["--model-set", "backbone=test_resnet", "--image-size", "64x32", "--steps", "1"]
    assert main([*call, "--out", str(tmp_path / "r")]) == 0
    assert "skipping the evaluation" in capsys.readouterr().err
    assert result_of(tmp_path / "r") is None
    model = ["--model", str(tmp_path / "r" / "model.safetensors")]
    assert main(["evaluate", *call[1:3], *model]) == 2
    assert "no query" in capsys.readouterr().err


def test_agw_by_its_own_recipe(data, tmp_path, refused):
    call = ["train", *data, "--model", "agw", "--model-set", "backbone=test_resnet", "--model-set"]
    call += ["non_local=[0,0,0,1]", "--model-set", "size=64x32", "--image-size", "64x32"]
    call += ["--steps", "2", "--images-per-identity", "2"]
    assert main([*call, "--recipe", "agw", "--out", str(tmp_path / "r")]) == 0
    recipe = json.loads((tmp_path / "r" / "manifest.json").read_text())["settings"]["recipe"]
    assert (recipe["recipe"], recipe["images_per_identity"]) == ("agw", 2)
    facts = load_model(tmp_path / "r" / "model.safetensors").provenance
    assert facts["recipe"] == "agw"
    assert (facts["lr"], facts["identities"], facts["images_per_identity"]) == (3.5e-4, 16, 2)
    line = refused(*call, "--recipe", "awg")
    assert 'Did you mean "agw"' in line
    assert "--recipe" in line


def test_a_model_without_weights_is_a_warning(data, capsys):
    assert main(["evaluate", *data, "--model", "osnet_x0_25", "--model-set", "size=32x16"]) == 0
    assert "warning: no weights are given for osnet_x0_25" in capsys.readouterr().err


def test_weights_of_another_program(data, trained, tmp_path, capsys):
    """A plain state dict, its classifier dropped: the same metrics as those of our own file."""
    state = load_model(trained / "model.safetensors").state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "w.pth")
    network = ["--model-set", "backbone=test_resnet", "--model-set", "size=64x32"]
    call = ["evaluate", *data, "--image-size", "64x32", *network, "--out", str(tmp_path / "r")]
    assert main([*call, "--model", f"ide:{tmp_path / 'w.pth'}"]) == 0
    assert result_of(tmp_path / "r")["clean"] == result_of(trained)["clean"]
    assert "warning" not in capsys.readouterr().err


def test_list(capsys):
    assert main(["list", "attacks"]) == 0
    attacks = capsys.readouterr().out
    assert attacks.startswith("color ")
    assert "combinatorial" in attacks
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    for name in ("attacks:", "osnet_x0_25", "plain", "misranking", "market1501"):
        assert name in everything
    assert "`" not in everything  # markup is for the documentation


def test_data(studio_root, tmp_path, capsys):
    assert main(["data", f"virtual:{studio_root}", "--check"]) == 0
    output = capsys.readouterr()
    assert "| train   |    144 |         16 |       3 |" in output.out
    assert "distractors in the gallery: 32" in output.out
    assert "every image can be read" in output.out
    assert "checking images 320/320" in output.err

    broken = write_virtual(
        tmp_path / "s",
        "studio",
        train_identities=2,
        test_identities=2,
        cameras=2,
        images_per_camera=2,
        height=64,
    )
    damaged = sorted((broken / "query").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert main(["data", f"virtual:{broken}", "--check"]) == 2
    error = capsys.readouterr().err
    assert "1 of 20 images of virtual:studio are damaged" in error
    assert str(damaged) in error


@pytest.mark.filterwarnings("ignore:.*has no camera")
def test_data_is_recognised(studio_root, tmp_path, capsys):
    assert main(["data", str(studio_root)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("virtual:studio\n")
    assert f"note: recognised as virtual: {studio_root} holds virtual.json" in output
    image = next((studio_root / "query").iterdir()).read_bytes()
    for name in ("0001_03.png", "0001_04.png"):
        (tmp_path / name).write_bytes(image)
    assert main(["data", str(tmp_path)]) == 2
    assert "--pattern '{pid}_{n}'" in capsys.readouterr().err
    assert main(["data", str(tmp_path), "--pattern", "{pid}_{n}"]) == 0
    assert "| gallery |      1 |          1 |       1 |" in capsys.readouterr().out


def test_failures_of_a_run_have_exit_code_1(target, tmp_path, monkeypatch, capsys):
    """A loss that explodes, and a defect in the code: one line each."""
    call = ["attack", *target, "--steps", "2", "--attack", "color"]

    def explode(self):
        self.param_groups[0]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(MISGD, "step", explode)
    monkeypatch.setattr("reidguard.attacks.ColorAttack.clip_parameters", lambda self: None)
    assert main([*call, "--out", str(tmp_path / "a")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("reidguard: error: ")
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["status"] == "failed"

    def defect(self):
        raise RuntimeError("a defect")

    monkeypatch.setattr(MISGD, "step", defect)
    assert main([*call, "--out", str(tmp_path / "b")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("reidguard: error: RuntimeError: a defect (for the traceback: ")
    assert main([*call, "--out", str(tmp_path / "b"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_lines_in_a_log_and_bars_on_a_terminal(monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("reidguard.cli.progress.time.monotonic", lambda: next(clock))
    log, terminal = StringIO(), Terminal()
    for stream in (log, terminal):
        with Display(stream) as display:
            display(Progress("learning", 2, 8))
            for step in range(3, 9):
                display(Progress("learning", step, 8, {"loss": 0.5}))
            display.phase("evaluating")(10, 10)
    assert log.getvalue().splitlines() == [
        "learning 5/8, loss 0.5, 12 s, about 12 s left",
        "learning 8/8, loss 0.5, 24 s",
        "evaluating 10/10, 0 s",
    ]
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"learning .*8/8.*loss 0\.5", shown)
    assert re.search(r"evaluating .*10/10", shown)


def test_tables_are_aligned():
    assert Table(["name", "mAP"], [["clean", "7.5"], ["x", "10.0"]]).to_markdown().splitlines() == [
        "| name  |  mAP |",
        "| ----- | ---: |",
        "| clean |  7.5 |",
        "| x     | 10.0 |",
    ]


def test_the_library_prints_nothing(trained, studio_root, tmp_path, capfd):
    """Only the command line prints."""
    dataset = load_dataset("virtual", studio_root)
    model = load_model(trained / "model.safetensors")
    attack = DeltaAttack(size=SIZE).fit(model, dataset, steps=1, image_size=SIZE)
    attack.save(tmp_path / "a.safetensors")
    evaluate(model, dataset, attack, Protocol(image_size=SIZE))
    assert capfd.readouterr() == ("", "")


def test_the_meta_attack_learns_from_two_datasets(target, studio_root, tmp_path, capsys):
    call = ["attack", *target, "--attack", "meta", "--set", "perturbation=delta", "--steps", "3"]
    call += ["--meta-data", f"virtual:{studio_root}", "--query-every", "8"]
    assert main([*call, "--learner-set", "inner_steps=2", "--out", str(tmp_path / "run")]) == 0
    facts = load_attack(tmp_path / "run" / "attack.safetensors").provenance
    assert facts["learner"] == "maml"
    assert facts["learner_options"]["inner_steps"] == 2
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all("test_loss" in json.loads(line) for line in lines)
    capsys.readouterr()
    assert main([*call, "--learner-set", "inner=steep", "--out", str(tmp_path / "other")]) == 2
    assert "unknown inner step 'steep'" in capsys.readouterr().err
