"""Stands in for `aafit.experiment.scheduling.worker`: writes run folders without training, or misbehaves as `$FAKE`
says.

`$FAKE` is a folder with `hashes.json` ({run/seed<k>: settings hash}), `behaviour.json` ({run: what it does}) and
`events.txt`, to which a line "<run> <start|end> <time> <process>" is added. Several jobs are done one after the other.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

fake = Path(os.environ["FAKE"])
jobs = json.loads(sys.stdin.readline())


def note(event: str, name: str) -> None:
    with (fake / "events.txt").open("a") as file:
        file.write(f"{name} {event} {time.monotonic()} {os.getpid()}\n")


def end_with_the_scheduler() -> None:
    sys.stdin.read()
    for job in jobs:
        note("orphaned", job["config"]["name"])
    os._exit(9)


def write_document(path: Path, content: dict) -> None:
    text = json.dumps({"format": 3, **content, "checksum": ""}, indent=2) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(text.replace('"checksum": ""', f'"checksum": "{digest}"'))


def do(job: dict) -> None:
    run, folder = job["config"], Path(job["folder"])
    behaviour = json.loads((fake / "behaviour.json").read_text()).get(run["name"], "")
    settings_hash = json.loads((fake / "hashes.json").read_text())["/".join(folder.parts[-2:])]
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    events = fake / "events.txt"
    earlier = sum(f"{run['name']} start " in line for line in events.open()) if events.exists() else 0
    note("start", run["name"])
    print("hello from", run["name"], "threads", job["threads"], os.environ.get("OMP_NUM_THREADS"), flush=True)
    print("GPUs", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    print("in", folder, sorted(os.listdir(folder)), flush=True)
    if job["parent"]:
        assert (Path(job["parent"]) / "done.json").exists(), "started before its parent was done"
    if behaviour == "fail":
        print("what went before", file=sys.stderr)
        sys.exit("the reason in one sentence")
    if behaviour == "kills what is under it" or (behaviour == "the same once" and earlier == 0):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    if behaviour == "dies after an epoch" and earlier == 0:
        (folder / "state.pt").write_text("after an epoch")
        while not (fake / "runs/fake" / run["name"] / "seed42/state.pt").exists():
            time.sleep(0.02)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    if behaviour == "dies after an epoch":
        (folder / "state.pt").unlink()
    while behaviour == "waits" and not (fake / "go").exists():
        time.sleep(0.02)
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "silent":
        os.close(1)
        sys.exit(0)
    config = {"hash": settings_hash, "run": run, "seed": job["seed"], "parent_hash": job["parent_hash"]}
    config["data"] = {"sha256": "", "in_shape": [1, 28, 28], "classes": 10}
    write_document(folder / "config.json", config)
    rows = ["epoch,train_loss,test_loss,test_accuracy,seconds,evaluation_seconds"]
    for epoch in range(run["start_epoch"], run["start_epoch"] + run["epochs"] + 1):
        rows.append(f"{epoch},1.0,1.0,0.5,{'' if epoch == run['start_epoch'] else 2.0},0.5")
        (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
        time.sleep(600 if behaviour in ("hang", "stubborn") else 0.02)
    done = {"hash": settings_hash, "sha256": {}, "finished": "", "seconds": 1.0}
    done["result"] = {"tuned_parameters": 1, "epochs": run["epochs"]}
    write_document(folder / "done.json", done)
    note("end", run["name"])


threading.Thread(target=end_with_the_scheduler, daemon=True).start()
for job in jobs:
    do(job)
