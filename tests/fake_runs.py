"""Run folders as a run leaves them behind, with made-up numbers: what the report is tested on."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from aafit.activations import AdaptiveActivation, from_text, is_adaptive
from aafit.experiment.runs.documents import save_json

LAYERS = {"act1": "cnn", "act2": "cnn", "act4": "cnn", "act5": "cnn", "act7": "fc"}


def write_run(
    suite: Path,
    name: str,
    cnn: str,
    fc: str = "",
    parent: str | None = None,
    seed: int = 42,
    start: int = 0,
    epochs: int = 10,
    accuracy: tuple[float, float, float] = (0.1, 0.1, 0.8),
    until: int | None = None,
    **settings: Any,
) -> Path:
    """Write one run folder.

    Args:
        accuracy: of the base, at the first row and at the last.
        until: the epoch after which the run was stopped.
        settings: more of config.json's "run".
    """
    folder = suite / name / f"seed{seed}"
    folder.mkdir(parents=True)
    run: dict[str, Any] = {"name": name, "stage": "1", "network": "KerasNet", "dataset": "CIFAR-10", "parent": parent}
    run |= {"cnn": cnn, "fc": fc or cnn, "sharing": "layer", "interval": [-4.0, 4.0], "knots": 18}
    run |= {"train": "activations" if parent else "all", "start_epoch": start, "epochs": epochs, "lr": None}
    run |= settings
    environment = {"device": "Some <CPU> & Co", "threads": 1, "started": f"2025-01-0{1 + seed % 2}T10:00:00+00:00"}
    data = {"sha256": "1" * 64, "in_shape": [3, 32, 32], "classes": 10}
    config = {"hash": "0" * 64, "run": run, "seed": seed, "parent": parent, "data": data, "environment": environment}
    save_json(folder / "config.json", config)

    first, steps = _activations(run, seed)
    rows = _rows(run, seed, accuracy, first, steps, start + epochs if until is None else until)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if parent is not None:
        save_json(folder / "compare.json", _comparison(run, seed, accuracy, list(first)))
    if until is not None:
        return folder
    if first:
        begun = {f"{path}.{key}": p.detach() for path, a in first.items() for key, p in a.named_parameters()}
        tuned = {key: begun[key] + (1 - math.exp(-5)) * step for key, step in steps.items()}
        tuned |= {f"start.{key}": value.clone() for key, value in begun.items()}
        metadata = {"format": "aafit activations", "version": "1"}
        metadata |= {"activations": json.dumps({path: a.settings() for path, a in first.items()})}
        metadata["replaced"] = json.dumps(dict.fromkeys(first, "ReLU") if parent else {})
        metadata |= {"calls": "{}", "fingerprint": ""}
        save_file(tuned, folder / "activations.safetensors", metadata)
    last = rows[-1]["test_accuracy"]
    result = {
        "base_accuracy": accuracy[0] if parent else None,
        "replaced_accuracy": accuracy[1] if parent else None,
        "last_accuracy": last,
        "last_loss": 0.7,
        "heldout_epoch": start + epochs - 1 if run.get("holdout") else None,
        "heldout_selected_accuracy": last - 0.001 if run.get("holdout") else None,
        "best_test_epoch": start + epochs,
        "best_test_accuracy": last + 0.001,
        "tuned_parameters": sum(step.numel() for step in steps.values()) if parent else 1_250_858,
        "epochs": epochs,
    }
    done = {"hash": "0" * 64, "sha256": {}, "finished": "2025-01-02T12:30:00+00:00", "seconds": 2.5 * epochs}
    save_json(folder / "done.json", {**done, "result": result})
    return folder


def write_suite(suite: Path) -> Path:
    """Two bases and four runs tuned from them; two seeds of the ReLU base and one child; one run unfinished."""
    for seed, more in ((42, 0.0), (100, 0.01)):
        write_run(suite, "base-relu", "ReLU", seed=seed, epochs=4, accuracy=(0, 0.1, 0.8 + more), holdout=500)
        options: dict[str, Any] = {"parent": "base-relu", "seed": seed, "start": 4, "epochs": 6, "holdout": 500}
        accuracy = (0.8 + more, 0.6, 0.7 + more)
        write_run(suite, "relu-leaf-tanh", "LEAF as ReLU", "LEAF as Tanh", stage="4", accuracy=accuracy, **options)
    options = {"parent": "base-relu", "start": 4, "epochs": 2}
    write_run(suite, "relu-leaf-relu", "LEAF as ReLU", stage="2", accuracy=(0.8, 0.799, 0.81), **options)
    options = {"parent": "base-relu", "start": 4, "epochs": 6, "accuracy": (0.8, 0.1, 0.11)}
    write_run(suite, "relu-fneuron", "ReLU", "F-Neuron random", stage="4", **options)
    write_run(suite, "base-silu", "SiLU", epochs=4, accuracy=(0, 0.1, 0.82))
    options = {"parent": "base-silu", "start": 4, "epochs": 6, "accuracy": (0.82, 0.4, 0.7), "until": 7}
    write_run(suite, "silu-ahaf-relu", "AHAF as ReLU", stage="6", **options)
    return suite


def _activations(run: dict[str, Any], seed: int) -> tuple[dict[str, AdaptiveActivation], dict[str, Tensor]]:
    """The adaptive activations as they start, and how far tuning moves each of their parameters."""
    draw = torch.Generator().manual_seed(seed)
    shape = (1,) if run["sharing"] == "layer" else (6, 2, 2)
    first: dict[str, Any] = {
        path: from_text(run[kind], shape, draw) for path, kind in LAYERS.items() if is_adaptive(run[kind])
    }
    parameters = {f"{path}.{key}": p for path, activation in first.items() for key, p in activation.named_parameters()}
    return first, {key: torch.rand(p.shape, generator=draw) - 0.5 for key, p in parameters.items()}


def _rows(
    run: dict[str, Any],
    seed: int,
    accuracy: tuple[float, float, float],
    first: dict[str, AdaptiveActivation],
    steps: dict[str, Tensor],
    until: int,
) -> list[dict[str, Any]]:
    _, before, after = accuracy
    rows = []
    for epoch in range(run["start_epoch"], until + 1):
        trained = epoch > run["start_epoch"]
        way = 1 - math.exp(-5 * (epoch - run["start_epoch"]) / max(run["epochs"], 1))
        now = before + (after - before) * way
        row: dict[str, Any] = {"epoch": epoch, "train_loss": 2.3 * math.exp(-2.5 * after * way) if trained else ""}
        row |= {"train_loss_variance": 0.01 if trained else "", "heldout_loss": "", "heldout_accuracy": ""}
        row |= {"heldout_loss": 0.5, "heldout_accuracy": now - 0.01} if run.get("holdout") else {}
        row |= {"test_loss": 1 - way, "test_accuracy": now + 0.002 * math.sin(7 * epoch + seed) * way}
        row |= dict(zip(("lr", "lr_slow", "seconds"), (1e-3, 1e-6, 2.5) if trained else ("", "", ""), strict=True))
        row["evaluation_seconds"] = 0.3
        for key, step in steps.items():
            path, _, name = key.rpartition(".")
            values = (first[path].get_parameter(name) + way * step).flatten().tolist()
            if step.shape[0] == 1:
                names = [key] if len(values) == 1 else [f"{key}[{index}]" for index in range(len(values))]
                row |= zip(names, values, strict=True)
        rows.append(row)
    return rows


def _comparison(
    run: dict[str, Any], seed: int, accuracy: tuple[float, float, float], paths: list[str]
) -> dict[str, Any]:
    base, before, _ = accuracy
    size = (1e-6 if base - before < 0.005 else 1e-3) * (1 + seed / 100)
    curve = {"old": "ReLU", "max": 0.5, "mean_squared": 1e-3, "interval": [-8.0, 8.0]}
    curves = [{"path": path, "new": run[LAYERS[path]], **curve} for path in paths]
    return {
        "layers": [{"path": path, "max_abs": 30 * size, "mean_abs": size} for path in paths],
        "logits": {"path": "logits", "max_abs": 90 * size, "mean_abs": 3 * size},
        "agreement": before / base,
        "base_accuracy": base,
        "base_loss": 0.6,
        "replaced_accuracy": before,
        "replaced_loss": 1.9,
        "samples": 10000,
        "curves": [{**one, "dtype": dtype} for one in curves for dtype in ("float32", "float64")],
    }
