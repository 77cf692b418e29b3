"""The command `aafit train`: one run, or several, by the authors' command line.

Read `plan` first: it translates the flags into jobs. Their activations are translated in authors.py; the finished runs
that they resume from are found in single_runs.py.
"""

import logging
import os
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import click

from aafit.errors import UserError
from aafit.experiment.cli.authors import ACTS, DATASETS, FUNCTIONS, NETWORKS, STARTS, TYPES, Words, find_checkpoint
from aafit.experiment.cli.options import (
    DEVICES,
    Command,
    activation_options,
    given,
    identification_options,
    launch_options,
    precision_option,
    to_torch_device,
    with_options,
)
from aafit.experiment.cli.single_runs import (
    DESCRIBED,
    INDIVIDUAL,
    Finished,
    Launcher,
    activations_of,
    differences,
    find_runs,
    read_finished,
    run_name,
)
from aafit.experiment.runs.config import RunConfig, folder_name
from aafit.experiment.runs.documents import Done
from aafit.experiment.runs.folder import has_optimizer
from aafit.experiment.runs.job import Job, check_same_settings, content_of, learning_rate
from aafit.experiment.runs.method import METHODS

log = logging.getLogger("aafit")

SETTINGS = ("cnn", "fc", "sharing", "interval", "knots", *METHODS["gauss-newton"].settings)
"""Flags that are settings of the same name, where they are given."""

IN_NAME = ("lr", "train", "train_images", "from_run")
"""Other flags that are part of the run's name where they are given."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of one command; the fields are the options of `aafit train`.

    Attributes:
        given: those of `SETTINGS` that are given.
    """

    kind: str
    net: str
    ds: str
    opt: str
    bs: int
    acts: str
    act_cnn: str | None
    start_ep: int
    end_ep: int
    patch_base: bool
    patched: bool
    patched_from_af: str | None
    tune_aaf: bool
    train: str | None
    tuned: bool
    p24sl: bool
    dspu4: bool
    precision: str
    init_from: Path | None
    from_run: str | None
    method: str
    given: dict[str, Any]
    lr: float | None
    holdout: int
    train_images: int | None
    no_augment: bool
    no_shuffle: bool
    new_optimizer: bool
    folder: str | None
    stage: str

    @property
    def base(self) -> str:
        """The activation of the base network."""
        return self.patched_from_af or self.acts

    @property
    def words(self) -> Words:
        return Words(self.kind, self.acts, self.act_cnn, self.base)

    def check(self) -> None:
        """Check that the flags do not contradict each other."""
        if self.end_ep < self.start_ep:
            raise UserError(f"--end_ep {self.end_ep} is before --start_ep {self.start_ep}.")
        if self.init_from is not None and self.from_run is not None:
            raise UserError("--init-from and --from both name the network that the run starts from: give one of them.")
        if self.patch_base and self.patched:
            raise UserError(
                "--patch_base replaces the activations of a base network, --patched resumes after that: give one."
            )
        if self.patched and not self.start_ep:
            raise UserError("--patched resumes from a run: give the epoch that it ended with, by --start_ep.")
        if self.folder is not None:
            if self.folder.count("/") != 1:
                raise UserError(f"--folder {self.folder} is not of the form SUITE/RUN, such as paper/base-relu.")
            for part in self.folder.split("/"):
                folder_name(part)

    def name(self) -> str:
        """Return the name of the run: all flags that distinguish it from others."""
        if self.folder is not None:
            return self.folder.split("/")[1]
        words = [self.net, self.ds, self.kind, self.acts]
        words += [f"cnn_{self.act_cnn}"] * (self.act_cnn is not None)
        words += [f"from_{self.base}"] * (self.patch_base or self.patched)
        marks = {"patched": self.patched, "tuned": self.tuned, "tune": self.tune_aaf, "p24sl": self.p24sl}
        marks |= {"dspu4": self.dspu4, METHODS[self.method].folder_mark: bool(METHODS[self.method].folder_mark)}
        marks |= {"noaugment": self.no_augment, "noshuffle": self.no_shuffle, "newoptimizer": self.new_optimizer}
        words += [word for word, on in marks.items() if on]
        words += [self.opt, f"bs{self.bs}"] + [self.precision] * (self.precision != "float32")
        words += [f"holdout{self.holdout}"] * (self.holdout > 0)
        values = self.given | given({key: getattr(self, key) for key in IN_NAME})
        words += [f"{key}_{_plain(value)}" for key, value in values.items()]
        return run_name([*words, f"{self.start_ep}-{self.end_ep}"])

    def shared_settings(self) -> dict[str, Any]:
        """Return the settings that a run shares with the run that it resumes from."""
        return {
            "network": self.net,
            "dataset": DATASETS[self.ds],
            "optimizer": self.opt,
            "batch_size": self.bs,
            "precision": self.precision,
            "holdout": self.holdout,
            "train_images": self.train_images,
            "augment": not self.no_augment,
            "shuffle": not self.no_shuffle,
        }

    def settings(self) -> dict[str, Any]:
        """Return the settings of the run, except what it starts from."""
        default = "activations" if self.tune_aaf or METHODS[self.method].activations_only else "all"
        train = self.train or ("none" if self.start_ep == self.end_ep else default)
        if self.dspu4 and train == "activations":
            log.info("--dspu4 with --tune_aaf is the same as --tune_aaf: all that the second step trains is frozen")
        return {
            **self.shared_settings(),
            **self.words.settings(),
            **self.given,
            "name": self.name(),
            "stage": self.stage,
            "method": self.method,
            "train": train,
            "start_epoch": self.start_ep,
            "epochs": self.end_ep - self.start_ep,
            "lr": self.lr,
            "p24sl": self.p24sl,
            "dspu4": self.dspu4 and train == "all",
        }


def plan(flags: Flags, launcher: Launcher) -> list[Job]:
    """Return the jobs that the flags describe, each after the imports that it needs, before one of them begins."""
    flags.check()
    networks = list(NETWORKS) if flags.net == "all" else [flags.net]
    data_sets = list(DATASETS)[:2] if flags.ds == "all" else [flags.ds]
    runs = [
        replace(flags, net=network, ds=data_set, acts=act)
        for network, data_set, act in product(networks, data_sets, ACTS[flags.acts])
    ]
    if flags.folder is not None and len(runs) > 1:
        raise UserError(f"--folder {flags.folder} is for one run, but these flags describe {len(runs)}.")
    jobs = [job for run_flags in runs for job in _jobs(run_flags, launcher)]
    return list({job.folder: job for job in jobs}.values())


def _jobs(flags: Flags, launcher: Launcher) -> list[Job]:
    """Return the job of one run, after the import of its base network if it has one."""
    settings = flags.settings()
    run = RunConfig.checked(settings)
    if flags.init_from is not None and not flags.patch_base:
        return [_resume_from_file(settings, flags.init_from, launcher)]
    if flags.from_run is not None:
        return [_resume(flags, settings, [_named(flags, launcher)], launcher)]
    if flags.patch_base:
        return _replace(flags, settings, launcher)
    if flags.start_ep == 0:
        return [launcher.job(run)]
    wanted = {key: getattr(run, key) for key in DESCRIBED} | {"end_epoch": flags.start_ep, "lr": learning_rate(run)}
    wanted |= {"base": flags.base if flags.patched else None, "tuned": flags.tuned, "dspu4": flags.dspu4}
    try:
        parents = find_runs(launcher, wanted)
    except UserError as error:
        marks = {key: getattr(flags, key) for key in ("patched", "tuned", "dspu4", "p24sl")}
        return [_resume_from_file(settings, _checkpoint(flags, flags.words, marks, launcher, error), launcher)]
    return [_resume(flags, settings, parents, launcher)]


def _named(flags: Flags, launcher: Launcher) -> Finished:
    """Return the finished run that --from names."""
    name = str(flags.from_run)
    folder = launcher.runs_dir.absolute() / name / f"seed{launcher.seed}"
    finished = read_finished(folder if folder.exists() else Path(name).absolute())
    shared = flags.shared_settings()
    wanted = {key: shared[key] for key in ("network", "dataset", "holdout")} | {"end_epoch": flags.start_ep}
    if flags.patch_base and flags.patched_from_af is not None:
        wanted |= {"cnn": flags.base, "fc": flags.base}
    if different := differences(finished.facts(), wanted):
        raise UserError(f"--from {name} is not the run that the flags describe ({', '.join(different)}).")
    return finished


def _replace(flags: Flags, settings: dict[str, Any], launcher: Launcher) -> list[Job]:
    """Return the job that replaces activations of a base network: a finished run, or a checkpoint of the authors'."""
    base = {**flags.shared_settings(), "cnn": flags.base, "fc": flags.base, "epochs": 0}
    file = flags.init_from
    if file is None:
        described = RunConfig.checked({**base, "name": "base"})
        wanted = {key: getattr(described, key) for key in DESCRIBED}
        wanted |= {"end_epoch": flags.start_ep, "base": None, "tuned": False}
        try:
            parents = find_runs(launcher, wanted)
        except UserError as error:
            marks = dict.fromkeys(("patched", "tuned", "dspu4", "p24sl"), False)
            file = _checkpoint(flags, Words("base", flags.base, None, flags.base), marks, launcher, error)
        else:
            return [_resume(flags, settings, parents, launcher)]
    log.info("base network: %s", file)
    name = f"{flags.net}-{flags.ds}-base-{flags.base}-imported-{content_of(file)[:8]}-{flags.start_ep}"
    base |= {"name": name, "train": "none", "start_epoch": flags.start_ep, "init_from": file.absolute()}
    imported = launcher.job(RunConfig.checked(base))
    return [imported, launcher.job(RunConfig.checked(settings), imported.folder, imported.settings_hash)]


def _checkpoint(flags: Flags, words: Words, marks: dict[str, bool], launcher: Launcher, error: UserError) -> Path:
    """Return the authors' checkpoint with these words; `error` if there is none."""
    folders = [launcher.runs_dir, *map(Path, filter(None, [os.environ.get("SRGK_RUNS_PATH")]))]
    file = find_checkpoint(folders, words, flags.net, flags.ds, flags.opt, flags.start_ep, marks)
    if file is None:
        raise UserError(f"{error} A checkpoint of the authors' program can be given by --init-from.") from None
    log.info("resuming from the authors' checkpoint %s", file)
    return file


def _resume(flags: Flags, settings: dict[str, Any], parents: list[Finished], launcher: Launcher) -> Job:
    """Return the job that resumes from one of these runs, which end with the same network.

    If the job has begun, that is the run that it began with, otherwise preferably one with a saved optimizer.
    """
    run = RunConfig.checked(settings)
    same = activations_of(run) == activations_of(parents[0].run)
    optimizer = same and not flags.new_optimizer and run.takes_gradient_steps
    jobs = []
    for parent in parents:
        resume = optimizer and has_optimizer(parent.folder)
        more = {"resume_optimizer": resume, "parent": parent.folder.parent.name}
        jobs.append(launcher.job(RunConfig.checked(settings | more), parent.folder, parent.hash))
    job = min(jobs, key=lambda job: (not launcher.has_begun(job), not job.config.resume_optimizer))
    log.info("resuming from %s", job.parent)
    if optimizer and not job.config.resume_optimizer:
        log.info("it has no saved optimizer: a new one is used")
    return job


def _resume_from_file(settings: dict[str, Any], file: Path, launcher: Launcher) -> Job:
    if settings["train"] != "none":
        log.info("a new optimizer is used: its state in a checkpoint of the authors' program is not loaded")
    return launcher.job(RunConfig.checked(settings | {"init_from": file.absolute()}))


def _plain(value: object) -> str:
    """Return a value as part of a run's name."""
    text = "_".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return "".join(letter if letter.isalnum() or letter in ".+_" else "_" for letter in text)


@click.command(cls=Command, short_help="One run, by the authors' command line.")
@click.argument("kind", metavar="TYPE", type=click.Choice(TYPES))
@click.option("--net", type=click.Choice([*NETWORKS, "all"]), default="all", help="Network.")
@click.option("--ds", type=click.Choice([*DATASETS, "all"]), default="all", help="Data set; all: F-MNIST and CIFAR-10.")
@click.option("--opt", type=click.Choice(["rmsprop", "adam"]), default="rmsprop", help="Optimizer.")
@click.option("--bs", "--batch-size", "bs", type=click.IntRange(min=1), default=64, help="Batch size.")
@click.option(
    "--dev", type=click.Choice(["cpu", "gpu", "cuda"]), default="gpu", help="gpu (or cuda): the CPU if there is none."
)
@click.option("--device", metavar=DEVICES, callback=to_torch_device, help="The same, as in all other commands.")
@click.option(
    "--acts",
    type=click.Choice(list(ACTS)),
    default="all_lus",
    help="Activation, or the one that an adaptive activation starts as.",
)
@click.option("--act_cnn", type=click.Choice(STARTS), help="The same for the CNN layers, if it differs.")
@click.option("--start_ep", type=click.IntRange(min=0), default=0, help="Epoch to start from.")
@click.option(
    "--end_ep", type=click.IntRange(min=0), default=100, help="Last epoch; equal to --start_ep: only evaluate."
)
@click.option("--patch_base", is_flag=True, help="Load the base network at --start_ep and replace its activations.")
@click.option("--patched", is_flag=True, help="Resume from a network whose activations were replaced.")
@click.option("--patched_from_af", type=click.Choice(FUNCTIONS), help="Activation of the base [default: --acts].")
@click.option("--tune_aaf", is_flag=True, help="Train only the parameters of the adaptive activations.")
@click.option("--tuned", is_flag=True, help="Resume from a network trained with --tune_aaf.")
@click.option("--p24sl", is_flag=True, help="LEAF's p2 and p4 have a small learning rate.")
@click.option("--dspu4", is_flag=True, help="2SPU-4: each step updates the activations, then all other parameters.")
@precision_option(default="float32")
@click.option(
    "--init-from",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Checkpoint of the authors' program: of the base with --patch_base, else of the network to resume from.",
)
@click.option("--from", "from_run", metavar="SUITE/RUN", help="The finished run to resume from, or its folder.")
@click.option("--cnn", help='Activation of the CNN layers, as "LEAF as HardTanh", instead of that of TYPE and --acts.')
@click.option("--fc", help="The same for the fully connected layers.")
@with_options(*activation_options)
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="gradient",
    help="gauss-newton: the activations are identified; an epoch is one step.",
)
@with_options(*identification_options)
@click.option(
    "--train",
    type=click.Choice(["all", "activations", "none"]),
    help="What is trained [default: all; with --tune_aaf activations; without an epoch none].",
)
@click.option("--lr", type=float, help="Learning rate [default: 1e-3 with adam, 1e-4 with rmsprop].")
@click.option(
    "--heldout-images",
    "--holdout",
    "holdout",
    type=click.IntRange(min=0),
    default=0,
    help="Train images that are held out from training.",
)
@click.option("--train-images", type=click.IntRange(min=1), help="Train on this many images only.")
@click.option("--no-augment", is_flag=True, help="Do not augment the train images.")
@click.option("--no-shuffle", is_flag=True, help="Do not shuffle the train images.")
@click.option("--new-optimizer", is_flag=True, help="Do not restore the optimizer of the run that this one resumes.")
@click.option("--folder", metavar="SUITE/RUN", help="Folder of the result [default: individual/ and all flags].")
@click.option("--stage", default="", show_default=False, help="Stage of the experiment, for tables.")
@with_options(*launch_options)
def train(dev: str, device: str | None, folder: str | None, **options: Any) -> None:
    """Train or tune one network (or several), as the authors' train_individual.py does.

    \b
    TYPE is one of
      base                           fixed activations
      ahaf, leaf, fuzzy_ffn          AHAF, LEAF, F-Neuron, with parameters for each neuron
      ahaf_shared, leaf_shared, fuzzy_ffn_shared
                                     the same, with parameters for each layer

    F-Neurons are in the fully connected layers only. Results go to RUNS_DIR/individual. Without --patch_base, a run
    from --start_ep on resumes network and optimizer of the finished run that the other flags describe.

    \b
    Example: a base network, then LEAF as ReLU in its place
      base --acts ReLU --net LeNet-5 --ds F-MNIST --opt adam --end_ep 2
      leaf_shared --acts ReLU --net LeNet-5 --ds F-MNIST --opt adam --start_ep 2 --end_ep 4 --patch_base --tune_aaf
    """
    options["device"] = device or ("cpu" if dev == "cpu" else "auto")
    launcher = Launcher.of(options, INDIVIDUAL if folder is None else folder.split("/")[0])
    settings = given({key: options.pop(key) for key in SETTINGS})
    flags = Flags(folder=folder, given=settings, **options)
    jobs = plan(flags, launcher)
    for job in jobs if not launcher.fresh else ():
        check_same_settings(job)
    for job in jobs:
        place = launcher.run(job)
        result = Done.of(place).result
        log.info("test accuracy %.2f%%, loss %.4f: %s", 100 * (result.last_accuracy or 0), result.last_loss, place)
