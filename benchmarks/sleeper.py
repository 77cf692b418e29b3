"""A worker that only sleeps and writes a run folder like a real one: to time a schedule, an engine or a report.

`$SLEEPER` is a folder with `seconds.txt`, the duration of a run; `hashes.txt`, a line "<run>/seed<k> <settings hash>"
each; and the files that are equal in all run folders. The script imports nothing of the package and starts in
milliseconds.
"""

import csv
import hashlib
import io
import json
import math
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

LAYERS = ("act1", "act2", "act4", "act5", "act7")
PARAMETERS = ("p1", "p2", "p3", "p4")


def end_with_the_schedule() -> None:
    sys.stdin.read()
    os._exit(1)


def hash_of(key: str, hashes: str) -> str:
    begin = hashes.index(f"{key} ") + len(key) + 1
    return hashes[begin : hashes.index("\n", begin)]


def write_run(job: dict[str, Any], settings_hash: str, template: Path) -> None:
    """Write the folder of a finished run with made-up numbers."""
    run, folder = job["config"], Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    config = {"format": 3, "hash": settings_hash, "run": run, "seed": job["seed"], "parent_hash": job["parent_hash"]}
    config |= {"parent": None if job["parent"] is None else os.path.relpath(job["parent"], folder)}
    config |= {"data": {"sha256": "", "in_shape": [1, 28, 28], "classes": 10}, "environment": {"device": "none"}}
    write_document(folder / "config.json", config)
    chance = math.sin(job["seed"] * 12.9898 + len(run["name"])) / 20
    (folder / "metrics.csv").write_text(metrics(run, chance))
    vouched = ["config.json", "metrics.csv"]
    if run["parent"] is not None:
        for name in ("compare.json", "activations.safetensors"):
            shutil.copyfile(template / name, folder / name)
            vouched.append(name)
    accuracy = 0.8 + chance
    result = {"last_accuracy": accuracy, "last_loss": 0.7, "best_test_epoch": run["start_epoch"] + run["epochs"]}
    result |= {"best_test_accuracy": accuracy, "tuned_parameters": 20, "epochs": run["epochs"]}
    if run["parent"] is not None:
        result |= {"base_accuracy": 0.8, "replaced_accuracy": 0.6}
    sha256 = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in vouched}
    done = {"format": 3, "hash": settings_hash, "sha256": sha256, "finished": "", "seconds": 1.0, "result": result}
    write_document(folder / "done.json", done)


def metrics(run: dict[str, Any], chance: float) -> str:
    names = [f"{layer}.{parameter}" for layer in LAYERS for parameter in PARAMETERS] if run["parent"] else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fixed = "epoch,train_loss,heldout_loss,heldout_accuracy,test_loss,test_accuracy,lr,seconds,evaluation_seconds"
    writer.writerow([*fixed.split(","), *names])
    for epoch in range(run["epochs"] + 1):
        share = 1 - math.exp(-epoch)
        measured = [2 - share, 2 - share, 0.1 + 0.7 * share, 2 - share, 0.1 + (0.7 + chance) * share, 0.001]
        spent = [1.0 if epoch else "", 0.1]
        writer.writerow([run["start_epoch"] + epoch, *measured, *spent, *(share + chance for _ in names)])
    return text.getvalue()


def write_document(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps({**content, "checksum": ""}, indent=2) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(text.replace('"checksum": ""', f'"checksum": "{digest}"'))


def main() -> None:
    template = Path(os.environ["SLEEPER"])
    jobs = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_the_schedule, daemon=True).start()
    hashes = (template / "hashes.txt").read_text()
    for job in jobs:
        time.sleep(float((template / "seconds.txt").read_text()))
        write_run(job, hash_of("/".join(Path(job["folder"]).parts[-2:]), hashes), template)
    os._exit(0)


if __name__ == "__main__":
    main()
