"""The report, on run folders written here in the format that a run leaves behind."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from aafit.activations import AdaptiveActivation, from_text, is_adaptive

LAYERS = {"act1": "cnn", "act2": "cnn", "act4": "cnn", "act5": "cnn", "act7": "fc"}
FRESH = {"stage": "1", "network": "KerasNet", "dataset": "CIFAR-10", "parent": None, "sharing": "layer", "dspu4": False}


def write_run(
    suite: Path,
    name: str,
    cnn: str,
    fc: str = "",
    parent: str | None = None,
    stage: str = "1",
    seed: int = 42,
    start: int = 0,
    epochs: int = 10,
    accuracy: tuple[float, float, float] = (0.1, 0.1, 0.8),
    until: int | None = None,
    best_epoch: int | None = None,
    **settings: Any,
) -> Path:
    """A run folder. `accuracy`: of the base, at the first row, at the last; `until`: stopped after this epoch."""
    folder = suite / name / f"seed{seed}"
    folder.mkdir(parents=True)
    run = {**FRESH, "name": name, "stage": stage, "parent": parent, "cnn": cnn, "fc": fc or cnn, "train": "activations"}
    run |= {"start_epoch": start, "epochs": epochs, **settings}
    environment = {"device": "Some <CPU> & Co", "threads": 1, "torch": "2.13.0", "started": f"2025-01-0{1 + seed % 2}T10:00:00+00:00"}
    config = {"hash": "0" * 64, "run": run, "seed": seed, "parent": parent, "parent_hash": None, "environment": environment}
    (folder / "config.json").write_text(json.dumps(config))

    draw = torch.Generator().manual_seed(seed)
    texts = {path: run[kind] for path, kind in LAYERS.items()}
    shape = (1,) if run["sharing"] == "layer" else (6, 2, 2)
    first: dict[str, AdaptiveActivation] = {
        path: from_text(text, shape, draw) for path, text in texts.items() if is_adaptive(text)
    }  # type: ignore[assignment]
    steps = {f"{path}.{key}": torch.rand(p.shape, generator=draw) - 0.5 for path, a in first.items() for key, p in a.named_parameters()}
    shared = {key: step for key, step in steps.items() if step.shape[0] == 1}
    base, before, after = accuracy
    rows = []
    for epoch in range(start, (start + epochs if until is None else until) + 1):
        way = 1 - math.exp(-5 * (epoch - start) / max(epochs, 1))
        noise = 0.002 * math.sin(7 * epoch + seed) * way
        trained = epoch > start
        row = {"epoch": epoch, "train_loss": 2.3 * math.exp(-2.5 * after * way) if trained else "", "train_loss_variance": 0.01 if trained else ""}
        row |= {"heldout_loss": 0.5, "heldout_accuracy": before + (after - before) * way - 0.01} if run.get("holdout") else {"heldout_loss": "", "heldout_accuracy": ""}
        row |= {"test_loss": 1 - way, "test_accuracy": before + (after - before) * way + noise, "lr": 1e-3 if trained else "", "seconds": 2.5 if trained else "", "evaluation_seconds": 0.3}
        for key, step in shared.items():
            values = (first[key.rpartition(".")[0]].get_parameter(key.rpartition(".")[2]) + way * step).flatten().tolist()
            row |= {key if len(values) == 1 else f"{key}[{i}]": value for i, value in enumerate(values)}
        rows.append(row)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

    if parent is not None:
        size = 10 ** (-3 - 3 * (base - before < 0.005)) * (1 + seed / 100)
        layers = [{"path": path, "max_abs": 30 * size * (i + 1), "mean_abs": size} for i, path in enumerate(first)]
        curves = [
            {"path": path, "old": "ReLU", "new": texts[path], "dtype": dtype, "max": 0.5, "mean_squared": 1e-3, "interval": [-8, 8]}
            for path in first
            for dtype in ("float32", "float64")
        ]
        compared = {"layers": layers, "logits": {"max_abs": 90 * size, "mean_abs": 3 * size}, "agreement": before / base, "curves": curves}
        compared |= {"base_accuracy": base, "replaced_accuracy": before, "base_loss": 0.6, "replaced_loss": 1.9, "images": 10000}
        (folder / "compare.json").write_text(json.dumps(compared))
    if until is not None:
        return folder
    if first:
        tensors = {f"start.{path}.{key}": p.detach().clone() for path, a in first.items() for key, p in a.named_parameters()}
        tensors |= {key: tensors[f"start.{key}"] + (1 - math.exp(-5)) * step for key, step in steps.items()}
        metadata = {"activations": json.dumps({path: a.settings() for path, a in first.items()})}
        metadata["replaced"] = json.dumps(dict.fromkeys(first, "ReLU") if parent else {})
        save_file(tensors, folder / "activations.safetensors", metadata)
    last, held = rows[-1]["test_accuracy"], run.get("holdout")
    result = {"base_accuracy": base if parent else None, "replaced_accuracy": before if parent else None, "last_accuracy": last}
    result |= {"last_loss": 0.7, "base_loss": None, "replaced_loss": None, "epochs": epochs, "tuned_parameters": sum(s.numel() for s in steps.values())}
    result |= {"heldout_epoch": start + epochs - 1 if held else None, "heldout_selected_accuracy": last - 0.001 if held else None}
    result |= {"best_test_epoch": best_epoch or start + epochs, "best_test_accuracy": last + 0.001}
    done = {"hash": "0" * 64, "sha256": {}, "finished": "2025-01-02T12:30:00+00:00", "seconds": 2.5 * epochs, "result": result}
    (folder / "done.json").write_text(json.dumps(done))
    return folder
