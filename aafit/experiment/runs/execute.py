"""One run from start to end: read this first.

Load the data, build the starting network, replace its activations, compare it with its base, train it with a
measurement after each epoch, and write the results into the run's folder. Tables and figures are made from that folder.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext

import torch
from torch import nn

from aafit.errors import UserError
from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import Dataset, load_dataset
from aafit.experiment.devices import choose_device
from aafit.experiment.runs.active import ActiveRun
from aafit.experiment.runs.documents import METRICS, StoredComparison
from aafit.experiment.runs.folder import finish, parents_optimizer, write_config
from aafit.experiment.runs.job import Job, is_done, verdict
from aafit.experiment.runs.process import locked, printing_to_log
from aafit.experiment.runs.start import starting_network
from aafit.identification import audit
from aafit.networks.adaptive import adaptive_activations, adaptive_parameters, train_only_activations
from aafit.tables import fit_for_json
from aafit.training.compare import compare
from aafit.training.curve_errors import curve_errors
from aafit.training.precision import arithmetic, data_type

log = logging.getLogger("aafit")

AUDITED = 256  # number of images that the parameters are audited on


def execute(*jobs: Job, data: Dataset | None = None, patience: float = 0.0) -> None:
    """Do one run, or the rest of one that was stopped; or several runs of one `lockstep_group` in lockstep.

    Finished runs are left unchanged. Of several runs, each prints to the log.txt of its folder.

    Args:
        jobs: the runs.
        data: the images, if they are loaded already; otherwise the first job's data set is loaded.
        patience: how long to wait for a folder that another process works in, in seconds.
    """
    first = jobs[0]
    log_of = printing_to_log if len(jobs) > 1 else nullcontext
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(locked(job.folder, patience))
        stack.enter_context(arithmetic(first.config.precision, first.threads))
        left = [job for job in jobs if not is_done(job) and verdict(job) is None]
        if not left:
            _raise_verdicts(jobs)
            log.info("already done: %s", first.folder)
            return
        device = choose_device(first.device)
        if data is None:
            data = load_dataset(first.config.dataset, first.data_dir, first.config.holdout, first.config.train_images)
        data = data.to(device)
        runs = []
        for job in left:
            with log_of(job):
                runs.append(begin(job, data, device))
        first.config.training.implementation.train(runs, data, log_of)
        for run in runs:
            with log_of(run.job):
                finish(run)
    _raise_verdicts(jobs)


def _raise_verdicts(jobs: Sequence[Job]) -> None:
    """Raise a UserError if runs diverged, so that their children are not started."""
    verdicts = [sentence for sentence in map(verdict, jobs) if sentence is not None]
    if verdicts:
        raise UserError(" ".join(verdicts))


def begin(job: Job, data: Dataset, device: torch.device) -> ActiveRun:
    """Build the network that a run trains, compare it with its base, and restore the state it was stopped in."""
    # Before anything is written: an unusable parent or checkpoint must not leave a folder that refuses a better one.
    optimizer_state = parents_optimizer(job)
    net, base, replacement = starting_network(job, data, device)
    if optimizer_state is not None and replacement is not None:
        raise UserError(
            f"resume_optimizer = true, but the activations of the run in {job.parent} are replaced, and so the "
            "optimizer starts anew: drop resume_optimizer."
        )
    write_config(job, device, data)
    initial_values = {name: tensor.detach().cpu().clone() for name, tensor in adaptive_parameters(net).items()}
    run = ActiveRun(job, device, net, base, replacement, initial_values, optimizer_state)
    compare_with_base(run, data)
    run.tuned = sum(parameter.numel() for parameter in choose_trained(net, job.config.train))
    audit_parameters(run, data)
    job.config.training.implementation.prepare(run)
    return run


def choose_trained(net: nn.Module, train: str) -> list[nn.Parameter]:
    """Freeze what is not to be trained ("all", "activations", "none") and return the other parameters."""
    if train == "activations":
        return train_only_activations(net)
    net.requires_grad_(train == "all")
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def compare_with_base(run: ActiveRun, data: Dataset) -> None:
    """Write what the replacement changed: on the test images, and of each activation as a function."""
    folder, precision = run.job.folder, run.job.config.precision
    if run.base is None or run.replacement is None or StoredComparison.read(folder) is not None:
        return
    log.info("%s", run.replacement)
    comparison = compare(run.base, run.net, evaluation_batches(data.test, dtype=data_type(precision)), precision)
    log.info("%s", comparison)
    curves = [
        {"path": row.path, "old": row.old, "new": row.new, **vars(error)}
        for row in run.replacement.rows
        for error in curve_errors(run.net.get_submodule(row.path), run.base.get_submodule(row.path))
    ]
    values = {**comparison.as_dict(), "curves": curves}
    for which in ("base", "replaced"):
        # A network whose loss is not finite predicts the first class, which is no accuracy of 10%.
        if values[f"{which}_loss"] is None or not math.isfinite(values[f"{which}_loss"]):
            values[f"{which}_accuracy"] = None
    StoredComparison.model_validate(fit_for_json(values)).write(folder)


def audit_parameters(run: ActiveRun, data: Dataset) -> None:
    """Log, before the first epoch, which adaptive parameters the optimizer can move."""
    config, dtype = run.job.config, data_type(run.job.config.precision)
    begun = (run.job.folder / METRICS).exists()
    if begun or config.train == "none" or not config.epochs or not adaptive_activations(run.net):
        return
    batches = evaluation_batches(data.heldout or data.train, dtype=dtype)
    report = audit(run.net, batches, optimizer=config.optimizer, lr=config.lr, p24sl=config.p24sl, samples=AUDITED)
    log.info("%s", report)
