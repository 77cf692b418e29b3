"""Samples that a run's network was not trained on: to identify its activations on, and to study them on."""

import math
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from aafit.experiment.data.batches import evaluation_batches, training_batches
from aafit.experiment.data.datasets import Dataset, load_dataset
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import load_json
from aafit.experiment.runs.start import load_run
from aafit.training.evaluate import Batches
from aafit.training.precision import data_type

AUGMENTED = 5000  # train images to identify on where none are held out


def fresh_batches(data: Dataset, run: RunConfig, seed: int) -> Batches:
    """The images that the run held out; where it held out none, train images, augmented."""
    dtype = data_type(run.precision)
    if data.heldout is not None:
        return evaluation_batches(data.heldout, dtype=dtype)
    augmented = training_batches(data.train, run.batch_size, seed, 0, run.augment, run.shuffle, dtype)
    return islice(augmented, math.ceil(AUGMENTED / run.batch_size))


def material_of(folder: Path, data_dir: Path | None, device: torch.device) -> tuple[nn.Module, Batches, Batches]:
    """The network of a finished run in float32, fresh batches for it, and the test images to judge it on.

    Raises:
        UserError: the run is not finished or was altered, or its data set cannot be had.
    """
    net = load_run(folder).float().to(device)
    config = load_json(folder / "config.json")
    run = RunConfig.checked(config["run"], str(folder)).model_copy(update={"precision": "float32"})
    data = load_dataset(run.dataset, data_dir, run.holdout, run.train_images).to(device)
    return net, fresh_batches(data, run, config["seed"]), evaluation_batches(data.test)
