"""One run from start to end: the map of the program.

data -> starting network, its activations replaced -> comparison with the base -> training, measured each epoch ->
results. All that is found out goes into the run's folder (see documents.py); tables and pictures are made from that.
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
from aafit.experiment.runs.documents import METRICS, Comparison
from aafit.experiment.runs.epochs import identify_run, train_runs
from aafit.experiment.runs.folder import finish, load_progress, write_config
from aafit.experiment.runs.job import Job, is_done, verdict
from aafit.experiment.runs.lock import locked
from aafit.experiment.runs.log import printing_to_log
from aafit.experiment.runs.optimizer import parents_optimizer, resume_optimizers
from aafit.experiment.runs.start import Start, starting_network
from aafit.identification import audit
from aafit.networks.adaptive import adaptive_activations, train_only_activations
from aafit.tables import fit_for_json
from aafit.training.compare import compare
from aafit.training.curve_errors import curve_errors
from aafit.training.precision import arithmetic, data_type
from aafit.training.tune import make_optimizers

log = logging.getLogger("aafit")

AUDITED = 256  # images to look at the parameters on


def execute(*jobs: Job, data: Dataset | None = None, patience: float = 0.0) -> None:
    """Do one run, or what is left of it; or several in lockstep, of one `lockstep_group`.

    What is finished is left as it is. Where there are several, each prints to its folder's log.txt.

    Args:
        data: the images, where they are there already; otherwise the first job's data set is loaded.
        patience: how long to wait for a folder that another process works in, in seconds.

    Raises:
        UserError: another process works in a folder; it holds a run with other settings; the data, the parent's
            network or the state to go on from cannot be used; a run diverged, now or before. The others are done then.
    """
    first = jobs[0]
    own_log = printing_to_log if len(jobs) > 1 else nullcontext
    with ExitStack() as held:
        for job in jobs:
            held.enter_context(locked(job.folder, patience))
        held.enter_context(arithmetic(first.config.precision, first.threads))
        left = [job for job in jobs if not is_done(job) and verdict(job) is None]
        if not left:
            _tell_verdicts(jobs)
            log.info("already done: %s", first.folder)
            return
        device = choose_device(first.device)
        if data is None:
            data = load_dataset(first.config.dataset, first.data_dir, first.config.holdout, first.config.train_images)
        data = data.to(device)
        runs = []
        for job in left:
            with own_log(job):
                runs.append(begin(job, data, device))
        if first.config.method == "gauss-newton":
            identify_run(runs[0], data)
        else:
            train_runs(runs, data, own_log)
        for run in runs:
            with own_log(run.job):
                replaced = {row.path: row.old for row in run.start.swap.rows} if run.start.swap else {}
                finish(
                    run.job,
                    run.net,
                    run.starting_values,
                    replaced,
                    run.seconds,
                    run.tuned,
                    run.diverged,
                    run.optimizers,
                )
    _tell_verdicts(jobs)


def _tell_verdicts(jobs: Sequence[Job]) -> None:
    """End in an error where runs diverged, so that what comes from them is not started."""
    verdicts = [sentence for sentence in map(verdict, jobs) if sentence is not None]
    if verdicts:
        raise UserError(" ".join(verdicts))


def begin(job: Job, data: Dataset, device: torch.device) -> ActiveRun:
    """The network that a run starts from, compared with its base; what is trained of it, from where the run was."""
    # Before anything is written: what cannot be used, parent or checkpoint, leaves no folder that refuses a better one.
    kept = parents_optimizer(job)
    start = starting_network(job, data).to(device, job.config.precision)
    if kept is not None and start.swap is not None:
        raise UserError(
            f"resume_optimizer = true, but the activations of the run in {job.parent} are replaced: an optimizer "
            "starts afresh then; drop resume_optimizer."
        )
    write_config(job, device, data)
    starting_values = start.values()
    compare_with_base(job, start, data)
    trained = choose_trained(start.net, job.config.train)
    run = ActiveRun(job, start, starting_values, tuned=sum(parameter.numel() for parameter in trained))
    audit_parameters(job, start, data)
    if job.config.method == "gradient":
        settings = job.config
        if trained:
            run.optimizers = make_optimizers(start.net, settings.optimizer, settings.lr, settings.p24sl, settings.dspu4)
        log.info("%d parameters to train for %d epochs on %s", run.tuned, settings.epochs, device)
        progress = load_progress(job, start.net, run.optimizers, device)
        if progress is None and kept is not None:
            resume_optimizers(start.net, run.optimizers, kept)
        run.epoch, run.seconds = progress or (None, 0.0)
    return run


def choose_trained(net: nn.Module, train: str) -> list[nn.Parameter]:
    """Freeze what is not to be trained ("all", "activations", "none") and return the rest."""
    if train == "activations":
        return train_only_activations(net)
    net.requires_grad_(train == "all")
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def compare_with_base(job: Job, start: Start, data: Dataset) -> None:
    """Write what the replacement changed: on the test images, and of each activation as a function."""
    if start.base is None or start.swap is None or Comparison.read(job.folder) is not None:
        return
    log.info("%s", start.swap)
    batches = evaluation_batches(data.test, dtype=data_type(job.config.precision))
    comparison = compare(start.base, start.net, batches, job.config.precision)
    log.info("%s", comparison)
    curves = [
        {"path": row.path, "old": row.old, "new": row.new, **vars(error)}
        for row in start.swap.rows
        for error in curve_errors(start.net.get_submodule(row.path), start.base.get_submodule(row.path))
    ]
    values = comparison.as_dict()
    values["images"] = values.pop("samples")
    for which in ("base", "replaced"):
        # A network without a finite loss predicts the first class: no accuracy of 10%.
        if values[f"{which}_loss"] is None or not math.isfinite(values[f"{which}_loss"]):
            values[f"{which}_accuracy"] = None
    Comparison.model_validate(fit_for_json({**values, "curves": curves})).write(job.folder)


def audit_parameters(job: Job, start: Start, data: Dataset) -> None:
    """Say of each adaptive parameter, before the first epoch, whether the optimizer can move it."""
    run, dtype = job.config, data_type(job.config.precision)
    begun = (job.folder / METRICS).exists()
    if begun or run.train == "none" or not run.epochs or not adaptive_activations(start.net):
        return
    batches = evaluation_batches(data.heldout or data.train, dtype=dtype)
    log.info("%s", audit(start.net, batches, optimizer=run.optimizer, lr=run.lr, p24sl=run.p24sl, samples=AUDITED))
