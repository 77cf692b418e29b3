"""Disturb a suite by SIGKILL, a full disk and jumping clocks; then check that the results are bit-identical.

    ./run_experiment.sh benchmarks/storm.py --engine ray --kills 50

The suite is run twice: undisturbed on this machine, and disturbed, where the same command is started again until all
runs are done. Afterwards all networks must be bit-identical, no measured epoch may be lost, and no run may have been
in two processes at once (see witness.py). Killed on Ray: the process of a run, the Ray worker above it, the raylet of
a node, a whole node (a new one replaces it), the schedule, and the head with all nodes. Killed on this machine: the
process of a run, and the schedule.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

from aafit.errors import UserError
from aafit.experiment.runs.documents import ACTIVATIONS, METRICS, NETWORK, check_finished
from aafit.experiment.runs.job import jobs_of
from aafit.experiment.runs.metrics import read_rows
from benchmarks import witness
from benchmarks.harness import ROOT, Command, Report, json_option, report, whole_numbers
from benchmarks.weather import MARK, RayNodes, ThisMachine, Weather, jumping, kill_the_rest
from benchmarks.witness import Schedule

SUITE = Path(__file__).with_name("storm.toml")

NO_PROGRESS = 40
"""So many times in a row the schedule may end unfinished without anything having been killed."""


def start(schedule: Schedule, log: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """Start the schedule in a separate process."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "benchmarks.witness", "schedule"],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    assert process.stdin is not None
    process.stdin.write(schedule.model_dump_json().encode())
    process.stdin.close()
    return process


def storm(schedule: Schedule, weather: Weather, kills: int, every: float, log: Path) -> tuple[Counter[str], int]:
    """Kill processes at random times until `kills` are reached and the suite is done.

    Returns:
        How often each kind of process was killed, and how often the schedule was started.

    Raises:
        RuntimeError: the suite does not finish although nothing is killed any more.
    """
    killed: Counter[str] = Counter()
    starts, idle = 0, 0
    driver: subprocess.Popen[bytes] | None = None
    due = time.monotonic() + random.uniform(0, 2 * every)
    try:
        while True:
            if driver is None:
                driver = start(schedule.model_copy(update={"address": weather.address}), log)
                starts += 1
            if (code := driver.poll()) is not None:
                driver = None
                if code == 0:
                    return killed, starts
                idle = idle + 1 if killed.total() >= kills else 0
                if idle > NO_PROGRESS:
                    raise RuntimeError(f"the suite does not get done: {log.read_text()[-2000:]}")
            elif time.monotonic() >= due and killed.total() < kills:
                kind = random.choice(["schedule", *weather.kinds])
                if kind == "schedule":
                    driver.kill()
                    driver.wait()
                if kind == "schedule" or weather.kinds[kind]():
                    killed[kind] += 1
                    due = time.monotonic() + random.uniform(0, 2 * every)
            time.sleep(0.05)
    finally:
        if driver is not None:
            driver.kill()
            driver.wait()


def full_disk(schedule: Schedule, log: Path, kilobytes: int) -> str:
    """Run the suite on a disk that is too small, then on a larger one; return the output of the first attempt.

    The disk is memory, mounted for these processes alone; what is done there is in `schedule.runs_dir` at the end.

    Raises:
        UserError: no such disk can be mounted here.
        RuntimeError: the disk was large enough, or the suite was not done once there was room.
    """
    runs = schedule.runs_dir
    disk = runs.with_name("disk")
    disk.mkdir()
    unshared = ("unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")), "--mount", "sh", "-euc")
    try:
        subprocess.run([*unshared, f"mount -t tmpfs none {disk}"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"No disk can be mounted here, so that none can be full: {error}.") from error
    file = runs.with_name("schedule.json")
    file.write_text(schedule.model_copy(update={"runs_dir": disk / "runs"}).model_dump_json())
    command = f"{sys.executable} -m benchmarks.witness schedule < {file} >> {log} 2>&1"
    script = f"""
        mount -t tmpfs -o size={kilobytes}k none {disk}
        if {command}; then exit 3; fi
        mount -o remount,size=4g {disk}
        echo {ROOM} >> {log}
        {command}
        cp -r {disk}/runs {runs}
    """
    done = subprocess.run([*unshared, script], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    if done.returncode:
        what = "the disk was not full" if done.returncode == 3 else "the suite was not done once there was room"
        raise RuntimeError(f"{what}: {log.read_text()[-2000:]}")
    logs = [file.read_text(errors="replace") for file in sorted(runs.rglob("log.txt"))]
    return "\n".join([*logs, log.read_text().partition(ROOM)[0]])


ROOM = "now there is room"


def differences(schedule: Schedule, other: Path) -> list[str]:
    """Describe the differences between the finished runs of a schedule and those in another runs folder."""
    found = []
    theirs = jobs_of(schedule.chosen(), other)
    for key, job in jobs_of(schedule.chosen(), schedule.runs_dir).items():
        name = f"{key[0]} (seed {key[1]})"
        try:
            vouched = check_finished(job.folder).sha256
        except UserError as error:
            found.append(f"{name}: {error}")
            continue
        also = check_finished(theirs[key].folder).sha256
        found += [f"{name}: {file}" for file in (NETWORK, ACTIVATIONS) if vouched.get(file) != also.get(file)]
        if untimed(job.folder / METRICS) != untimed(theirs[key].folder / METRICS):
            found.append(f"{name}: {METRICS}")
    return found


def untimed(file: Path) -> list[dict[str, str]]:
    """Return the rows of the metrics without times."""
    return [{name: cell for name, cell in row.items() if not name.endswith("seconds")} for row in read_rows(file)]


PARTS = ("kills", "disk", "clock")


@click.command(cls=Command)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--kills", type=click.IntRange(min=0), default=50, show_default=True)
@click.option("--every", type=float, default=8.0, show_default=True, help="Seconds between two kills, in the mean.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=["kills"], show_default=True)
@click.option(
    "--suite", default=str(SUITE), help="One of `aafit run`, or a TOML file [default: benchmarks/storm.toml]."
)
@click.option("--seeds", callback=lambda *given: given[2] and whole_numbers(*given), help="Instead of the suite's.")
@click.option("--epochs-scale", type=float, help="Multiply the epochs of all runs.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes at once.")
@click.option("--chance", type=int, default=0, show_default=True, help="Seed of what is killed, and when.")
@click.option("--disk-kilobytes", type=click.IntRange(min=1), default=1024, show_default=True, help="Of the full disk.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the runs go, to be kept; the undisturbed ones in it are not done again [default: a temporary folder].",
)
@json_option
def main(
    engine: str,
    kills: int,
    every: float,
    parts: tuple[str, ...],
    suite: str,
    seeds: tuple[int, ...] | None,
    epochs_scale: float | None,
    jobs: int | None,
    chance: int,
    disk_kilobytes: int,
    folder: Path | None,
    json_path: Path | None,
) -> None:
    """Disturb a suite in every way, and compare its runs with undisturbed ones."""
    random.seed(chance)
    with report(json_path) as out, tempfile.TemporaryDirectory() as temporary:
        where = (folder or Path(temporary)).absolute()
        where.mkdir(parents=True, exist_ok=True)
        os.environ |= {MARK: f"{os.getpid()}", witness.FOLDER: str(where)}
        quiet = Schedule(suite=suite, seeds=seeds, epochs_scale=epochs_scale, engine="local", runs_dir=where / "quiet")
        if start(quiet, where / "quiet.txt").wait():
            raise UserError(f"The undisturbed suite was not done; see {where / 'quiet.txt'}.")
        failed = False
        for part in parts:
            runs = Path(tempfile.mkdtemp(prefix=f"{part}-", dir=where)) / "runs"
            asked = quiet.model_copy(update={"engine": engine, "jobs": jobs, "runs_dir": runs})
            failed |= not PART[part](out, asked, kills, every, disk_kilobytes, quiet.runs_dir)
        if failed:
            sys.exit(1)


def do_kills(out: Report, asked: Schedule, kills: int, every: float, _: int, quiet: Path) -> bool:
    weather: Weather = RayNodes() if asked.engine == "ray" else ThisMachine()
    try:
        return disturbed(out, asked, weather, kills, every, quiet)
    finally:
        weather.close()
        kill_the_rest()


def do_clock(out: Report, asked: Schedule, kills: int, every: float, _: int, quiet: Path) -> bool:
    with jumping(asked.runs_dir.parent) as weather:
        return disturbed(out, asked.model_copy(update={"engine": "local"}), weather, kills, every, quiet)


def do_disk(out: Report, asked: Schedule, _: int, __: float, kilobytes: int, quiet: Path) -> bool:
    local = asked.model_copy(update={"engine": "local"})
    said = full_disk(local, local.runs_dir.with_name("log.txt"), kilobytes)
    sentences = sorted({line.partition("Cannot write")[2].partition(" Log:")[0] for line in said.splitlines()} - {""})
    out.table("A full disk", [{"kB": kilobytes, "tracebacks": said.count("Traceback"), "said": len(sentences)}])
    out.note("; ".join(f"Cannot write{sentence}" for sentence in sentences))
    return verdict(out, local, quiet) and bool(sentences) and "Traceback" not in said


PART = {"kills": do_kills, "clock": do_clock, "disk": do_disk}


def disturbed(out: Report, asked: Schedule, weather: Weather, kills: int, every: float, quiet: Path) -> bool:
    """Disturb the suite until all kills are used; return whether its runs equal the undisturbed ones."""
    began, killed, starts, same, runs = time.monotonic(), Counter[str](), 0, True, 0
    while killed.total() < kills or not runs:
        again = asked.model_copy(update={"runs_dir": asked.runs_dir.with_name(f"runs{runs}")})
        more, times = storm(again, weather, kills - killed.total(), every, again.runs_dir.with_name("log.txt"))
        killed, starts, runs = killed + more, starts + times, runs + 1
        same &= verdict(out, again, quiet)
    row: dict[str, str | int | float | bool | None] = {}
    row |= {"engine": asked.engine, "suites done": runs, "schedules started": starts, "s": time.monotonic() - began}
    out.table("A storm", [{**row, "kills": killed.total(), **dict(sorted(killed.items()))}])
    return same


def verdict(out: Report, asked: Schedule, quiet: Path) -> bool:
    """Report whether the runs equal the undisturbed ones, each done by one process at a time."""
    different = differences(asked, quiet)
    twice = Path(os.environ[witness.FOLDER]) / witness.TWICE
    count = len(jobs_of(asked.chosen(), asked.runs_dir))
    out.note(
        f"{count} runs in {asked.runs_dir.parent.name}/{asked.runs_dir.name}: "
        + ("the same bits as undisturbed" if not different else f"different: {json.dumps(different)}")
        + ("; a run was in two processes at once." if twice.exists() else "; no run was in two processes at once.")
    )
    return not different and not twice.exists()


if __name__ == "__main__":
    main()
