"""Runs of seconds, on a few real digits, for the tests that need a run's folder."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import Config, Data, Done, Result
from aafit.experiment.runs.execute import execute
from aafit.experiment.runs.job import Job
from aafit.training.precision import processor_name

ROOT = Path(__file__).parent.parent
SMALL = {"network": "LeNet-5", "dataset": "MNIST-5k", "train_images": 200, "batch_size": 64, "epochs": 2}
LEAF = {"cnn": "LEAF as ReLU", "fc": "LEAF as Tanh", "train": "activations", "p24sl": True}


def base_job(folder, seed=42, **settings):
    run = RunConfig.checked({"name": "base", **SMALL, **settings})
    return Job(config=run, seed=seed, folder=folder / "base" / f"seed{seed}", threads=1, device="cpu")


def child_job(parent, name="child", **settings):
    inherited = {
        key: getattr(parent.config, key) for key in ("network", "dataset", "train_images", "batch_size", "holdout")
    }
    start = {"parent": parent.config.name, "start_epoch": parent.config.end_epoch, "epochs": 2}
    run = RunConfig.checked({"name": name, **inherited, **LEAF, **start, **settings})
    return parent.model_copy(
        update={
            "config": run,
            "folder": parent.folder.parent.parent / name / parent.folder.name,
            "parent": parent.folder,
            "parent_hash": parent.settings_hash,
        }
    )


def execute_on_few(job):
    """`execute` with 100 test images: the evaluation of 1,000 takes longer than the training."""
    data = load_dataset(job.config.dataset, None, job.config.holdout, job.config.train_images)
    execute(job, data=dataclasses.replace(data, test=data.test.at(torch.arange(100))))


def write_config(folder, run, settings_hash="", device=None):
    """config.json as a run leaves it that was done on `device`, by default on this machine."""
    data = Data(sha256="", in_shape=(1, 28, 28), classes=10)
    environment = {"device": device or processor_name()}
    Config(hash=settings_hash, run=run, seed=42, data=data, environment=environment).write(folder)


def write_done(folder, settings_hash, **result):
    """done.json of a run with this hash."""
    figures = Result(tuned_parameters=1, epochs=1, **result)
    Done(hash=settings_hash, sha256={}, finished="", seconds=1.0, result=figures).write(folder)


def start_process(job, **options):
    """`python -m aafit.experiment.scheduling.worker` with the job on its standard input, which stays open."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "aafit.experiment.scheduling.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )
    process.stdin.write(f"[{job.model_dump_json()}]\n")
    process.stdin.flush()
    return process


def read_json(path):
    return json.loads(path.read_text())


def untimed_rows(folder):
    """The rows of metrics.csv without what a clock says."""
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    timed = {index for index, name in enumerate(lines[0]) if name.endswith("seconds")}
    return [[cell for index, cell in enumerate(line) if index not in timed] for line in lines]
