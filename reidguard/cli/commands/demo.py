"""``reidguard demo``."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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

It renders three sets of virtual people, trains two small networks on each of two of them, learns
one MetaAttack on the first network of the first (the third set is the meta-test set), and
evaluates it on all four, in settings from white box to unknown network and unknown dataset.
Training and test identities differ. Nothing is downloaded. The same command resumes an interrupted
run.
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
        self.plan, self.seed, self.folder = plan, seed, folder
        self.seconds: dict[str, float] = {}
        self.num_stages = len(plan.domains) * (1 + len(plan.networks)) + 3

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
        attack = self.learn(
            "MetaAttack",
            "attack.safetensors",
            rg.load_attack,
            rg.MetaAttack(budget=rg.Budget(plan.eps), size=plan.size).fit,
            models[plan.networks[0].label][home],
            people[home],
            people[plan.meta_domain],
            steps=plan.attack_steps,
        )
        store = rg.FeatureStore()
        with self.stage("evaluating"):
            grid = rg.evaluate_grid(
                {"MetaAttack": attack},
                models,
                {domain: people[domain] for domain in plan.domains},
                rg.Protocol(image_size=plan.size),
                folder=self.folder.path,
                store=store,
                progress=self.folder.display.phase("settings"),
            )
        content = {**grid.to_dict(), "training": attack.provenance, "seconds": self.seconds}
        self.folder.finish(content, grid.to_markdown())
        run = read_run(self.folder.path)
        parts = pictures(run, torch.device("cpu"), store)
        save_page(self.folder / PAGE, report_page([run], {run.name: parts}))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a stage's name before its progress, and record its seconds."""
        began = time.perf_counter()
        self.folder.display.title = f"{len(self.seconds) + 1}/{self.num_stages} {name}: "
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def learn(
        self, stage: str, name: str, load: Any, fit: Any, *data: Any, prefix: str = "", **own: Any
    ) -> Any:
        """Learn a model or an attack unless its file exists, and load it from there."""
        plan = self.plan
        learn = partial(
            fit,
            *data,
            identities=plan.identities,
            images_per_identity=plan.images_per_identity,
            image_size=plan.size,
            seed=self.seed,
            **own,
        )
        with self.stage(stage):
            self.folder.learn(name, load, learn, prefix=prefix)
        return load(self.folder / name)

    def people(self, domain: str) -> "rg.ReIDDataset":
        """Render a domain; the meta-test one needs training identities only."""
        plan = self.plan
        is_meta = domain == plan.meta_domain
        target = self.folder / "people" / domain
        with self.stage(f"rendering {domain}"):
            return rg.load_dataset(
                f"virtual:{domain}",
                train_identities=plan.meta_identities if is_meta else plan.train_identities,
                test_identities=1 if is_meta else plan.test_identities,
                cameras=plan.cameras,
                images_per_camera=plan.images_per_camera,
                height=plan.size[0],
                seed=self.seed,
                folder=target,
                progress=self.folder.display.phase("images"),
            )

    def model(self, people: "rg.ReIDDataset", domain: str, network: Network) -> "rg.ReIDModel":
        """Train a network on a domain."""
        from reidguard.contexts import seeded
        from reidguard.data import Augment

        path = f"models/{domain}-{network.label.lower()}"
        classes, size = people.num_train_pids, self.plan.size
        with seeded(self.seed):
            model = rg.create_model(network.name, num_classes=classes, size=size, **network.options)
        trained: rg.ReIDModel = self.learn(
            f"training {network.label} on {domain}",
            f"{path}.safetensors",
            rg.load_model,
            rg.train_model,
            model,
            people,
            prefix=f"{path}.",
            steps=network.steps,
            lr=network.lr,
            augment=Augment(**self.plan.augment),
        )
        return trained


app = command("demo", run, {MACHINE: (Place, Threads)}, examples=EXAMPLES)
