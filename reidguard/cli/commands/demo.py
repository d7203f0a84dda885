"""``reidguard demo``."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import reidguard as rg
from reidguard.cli.options import MACHINE, Flag, Options, command
from reidguard.cli.sections import Threads

if TYPE_CHECKING:
    from reidguard.cli.run_dir import RunFolder

EXAMPLES = """\
  reidguard demo
  reidguard demo --out /tmp/demo --threads 2

It renders three crowds of virtual people, trains two small networks on each of two of them, learns
one MetaAttack on the first network of the first (the third crowd is the meta-test set), and
evaluates it on all four, in settings from white box to unknown network and unknown dataset. Nobody
who is searched for is in the training images. Nothing is downloaded. The same command resumes an
interrupted run.
"""

PAGE = "demo.html"


class Place(TypedDict, total=False):
    """Where the results go."""

    out: Annotated[Path, Flag("where everything goes", Path("runs/demo"))]
    seed: Annotated[int, Flag("seed of every random draw", 0, low=0)]


@dataclass(frozen=True)
class Network:
    """One architecture, and the training steps that it needs."""

    label: str
    name: str
    options: dict[str, Any]
    steps: int
    lr: float


@dataclass(frozen=True)
class Plan:
    """Everything that the results depend on, except the seed."""

    # The attack is learnt on the first. Learnt on the ResNet, it leaves the other unharmed.
    networks: tuple[Network, Network] = (
        Network("EfficientNet", "ide", {"backbone": "test_efficientnet_gn"}, 440, 1e-3),
        Network("ResNet", "ide", {"backbone": "test_resnet"}, 280, 2e-3),
    )
    domains: tuple[str, str] = ("plaza", "campus")
    meta_domain: str = "station"
    train_identities: int = 100
    meta_identities: int = 60
    test_identities: int = 25
    cameras: int = 3
    images_per_camera: int = 4
    size: tuple[int, int] = (128, 64)
    identities: int = 8
    images_per_identity: int = 4
    attack_steps: int = 100
    eps: float = 8 / 255
    # Mild: in so few steps, strong crops and erased parts teach less than they hinder.
    augment: dict[str, Any] = field(
        default_factory=lambda: {"crop": "pad", "padding": 4, "erase": 0.0}
    )


PLAN = Plan()


def run(options: Options) -> None:
    """Render, train, attack, evaluate, and show it on one page."""
    import torch

    from reidguard.cli.run_dir import open_run

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = {"command": "demo", "plan": asdict(PLAN), "seed": options.seed}
    with open_run(options, settings, ("result.json", "result.md", PAGE)) as folder:
        if not folder.finished:
            Demo(PLAN, options.seed, folder).run()
        folder.print()
        print(f"attack: {folder / 'attack.safetensors'}")
        print(f"results: {folder / 'result.json'}")
        print(f"page: {(folder / PAGE).resolve()}", flush=True)


class Demo:
    """The stages; each leaves a file and is skipped where that exists already.

    Args:
        plan: What to render, train and learn.
        seed: Fixes every random draw.
        folder: Where the files go.
    """

    def __init__(self, plan: Plan, seed: int, folder: "RunFolder") -> None:
        self.plan = plan
        self.seed = seed
        self.folder = folder
        self.seconds: dict[str, float] = {}
        trainings = len(plan.domains) * len(plan.networks)
        self.stages = len(plan.domains) + 1 + trainings + 2

    def run(self) -> None:
        """Write the models, the attack, the result and the page."""
        import torch

        from reidguard.cli.pictures import pictures
        from reidguard.report import read_run, report_page, save_page

        plan = self.plan
        people = {domain: self.people(domain) for domain in (*plan.domains, plan.meta_domain)}
        models = {
            network.label: {
                domain: self.model(people[domain], domain, network) for domain in plan.domains
            }
            for network in plan.networks
        }
        home = plan.domains[0]
        surrogate = models[plan.networks[0].label][home]
        attack = self.attack(surrogate, people[home], people[plan.meta_domain])
        store = rg.FeatureStore()
        with self.timed("evaluating 4 settings") as name:
            grid = rg.evaluate_grid(
                {"MetaAttack": attack},
                models,
                {domain: people[domain] for domain in plan.domains},
                rg.Protocol(image_size=plan.size),
                folder=self.folder.path,
                store=store,
                progress=self.folder.display.phase(name),
            )
        content = {**grid.to_dict(), "training": attack.provenance, "seconds": self.seconds}
        self.folder.finish(content, _table(grid))
        shown = read_run(self.folder.path)
        parts = pictures(shown, torch.device("cpu"), store)
        save_page(self.folder / PAGE, report_page([shown], {shown.name: parts}))

    @contextmanager
    def timed(self, what: str) -> Iterator[str]:
        """Yield a name for a stage's progress, and record its seconds."""
        began = time.perf_counter()
        yield f"{len(self.seconds) + 1}/{self.stages} {what}"
        self.seconds[what] = round(time.perf_counter() - began, 2)

    def learn(self, what: str, name: str, prefix: str, fit: Any, *data: Any, **own: Any) -> None:
        """Learn a model or an attack, unless its file exists."""
        plan = self.plan
        with self.timed(what) as stage:

            def show(progress: "rg.Progress") -> None:
                self.folder.display(replace(progress, phase=f"{stage}: {progress.phase}"))

            shared = {
                "identities": plan.identities,
                "images_per_identity": plan.images_per_identity,
                "image_size": plan.size,
                "seed": self.seed,
            }
            fit = partial(fit, *data, **shared, **own)
            load: Any = rg.load_attack if name.startswith("attack") else rg.load_model
            self.folder.learn(name, load, fit, prefix=prefix, progress=show)

    def people(self, domain: str) -> "rg.ReIDDataset":
        """Render a domain; the meta-test one needs training identities only."""
        from reidguard.data import load_dataset

        plan = self.plan
        meta = domain == plan.meta_domain
        target = self.folder / "people" / domain
        for leftover in target.parent.glob(f".{domain}.*"):  # of a killed run
            shutil.rmtree(leftover, ignore_errors=True)
        with self.timed(f"rendering {domain}") as name:
            return load_dataset(
                f"virtual:{domain}",
                train_identities=plan.meta_identities if meta else plan.train_identities,
                test_identities=1 if meta else plan.test_identities,
                cameras=plan.cameras,
                images_per_camera=plan.images_per_camera,
                height=plan.size[0],
                seed=self.seed,
                folder=target,
                progress=self.folder.display.phase(name),
            )

    def model(self, people: "rg.ReIDDataset", domain: str, network: Network) -> "rg.ReIDModel":
        """Train a network on a domain."""
        import torch

        from reidguard.data import Augment

        name = f"{domain}-{network.label.lower()}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = rg.create_model(
                network.name,
                num_classes=people.num_train_pids,
                size=self.plan.size,
                **network.options,
            )
        self.learn(
            f"training {network.label} on {domain}",
            f"models/{name}.safetensors",
            f"models/{name}.",
            rg.train_model,
            model,
            people,
            steps=network.steps,
            lr=network.lr,
            augment=Augment(**self.plan.augment),
        )
        return rg.load_model(self.folder / "models" / f"{name}.safetensors")

    def attack(
        self, model: "rg.ReIDModel", source: "rg.ReIDDataset", meta_test: "rg.ReIDDataset"
    ) -> "rg.Attack":
        """Learn the attack."""
        attack = rg.MetaAttack(budget=rg.Budget(self.plan.eps), size=self.plan.size)
        name, steps = "attack.safetensors", self.plan.attack_steps
        self.learn("MetaAttack", name, "", attack.fit, model, source, meta_test, steps=steps)
        return rg.load_attack(self.folder / name)


def _table(grid: "rg.GridResult") -> str:
    """Return the printed table: rates in percent, L∞ in grey levels."""
    from reidguard.tables import Table, percent

    rows = []
    for cell in grid.cells:
        for name, kind in (
            ("clean", "clean"),
            ("attacked, float", "attacked"),
            ("attacked, 8-bit", "attacked_8bit"),
        ):
            result = cell.evaluation[kind]
            rows.append(
                [
                    cell.setting,
                    f"{cell.model}, {cell.dataset}",
                    name,
                    *(percent(cell.metric(kind, metric)) for metric in ("mAP", "rank1", "mINP")),
                    f"{result.get('linf_255', 0.0):.2f}",
                    f"{result.get('ssim', 1.0):.3f}",
                ]
            )
    header = ["setting", "model, people", "queries", "mAP", "rank-1", "mINP", "L∞", "SSIM"]
    return Table(header, rows).to_markdown() + "\n"


app = command(
    "demo",
    run,
    {MACHINE: (Place, Threads)},
    examples=EXAMPLES,
)
