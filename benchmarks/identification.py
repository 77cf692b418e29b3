"""Compare identification with the paper's recipe, from the run folders of both, for every replacement.

./run_experiment_all.sh --suite cpu --data-dir DATA
./run_experiment_all.sh --suite docs/identification/longer.toml --data-dir DATA
./run_experiment_all.sh --suite identify --data-dir DATA
./run_experiment.sh benchmarks/identification.py --data-dir DATA --json identification.json

Test figures come from the run folders. The held-out loss is computed here, for all networks on the same held-out
images, none of which was fitted. Seconds are those of training and of identification, without the evaluation on test
images.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.experiment.report.runs import RunRecord, SuiteRuns, read_suite
from aafit.experiment.runs.documents import ACTIVATIONS, IDENTIFICATION, Config, load_json
from aafit.experiment.runs.folder import load_tensors
from aafit.experiment.runs.start import load_run
from aafit.networks.adaptive import adaptive_parameters
from aafit.training.evaluate import Evaluation
from aafit.training.precision import arithmetic
from benchmarks.harness import Command, Loss, Report, Row, json_option, markdown_option, report
from benchmarks.workload import Halves, heldout_of, images_dir_option

POINTS = 0.5  # of test accuracy that an identification may lose against its base network
SHARE_OF_TIME = 0.1
AGREE = 1e-3  # in loss, between two initializations of a convex problem
NETWORKS = ("base", "replaced", "recipe", "longer", "identified")
NOT_RUN = "not run"


@dataclass(frozen=True)
class Case:
    """A replacement with its finished runs: "identified", and "recipe" and "longer" where available."""

    name: str
    base: Path
    runs: dict[str, RunRecord]

    @property
    def identified(self) -> RunRecord:
        return self.runs["identified"]

    def test(self, network: str) -> tuple[float | None, float | None]:
        """Return accuracy in percent and loss on the test images; None without such a run."""
        if network in ("base", "replaced"):
            compared = self.identified.comparison
            assert compared is not None
            accuracy, loss = getattr(compared, f"{network}_accuracy"), getattr(compared, f"{network}_loss")
            return 100 * accuracy, Loss(loss)
        run = self.runs.get(network)
        return (None, None) if run is None else (100 * _last(run, "test_accuracy"), Loss(_last(run, "test_loss")))

    def seconds(self, network: str) -> float | None:
        if network not in self.runs:
            return None
        # metrics.csv has no time of rejected steps of an identification.
        run = self.runs[network]
        assert run.done is not None
        return run.done.seconds if network == "identified" else float(np.nansum(run.columns["seconds"]))


@dataclass(frozen=True)
class OnHeldOut:
    """The held-out loss of each network of a case, and its difference from the recorded loss."""

    rest: dict[str, Evaluation]
    fitted: float
    difference: float


def cases_of(recipe: SuiteRuns, identified: SuiteRuns, longer: SuiteRuns | None) -> tuple[list[Case], list[str]]:
    """Return the identified replacements in the order of the stages, and the names of the others."""
    suites = {"identified": identified, "recipe": recipe} | ({"longer": longer} if longer else {})
    by_key = {network: {(run.name, run.seed): run for run in suite.runs} for network, suite in suites.items()}
    found, unfinished = [], []
    every = {**by_key["identified"], **by_key["recipe"]}.values()
    ordered = sorted((run for run in every if run.settings.parent), key=lambda run: run.settings.stage)
    seeds = Counter(run.name for run in ordered)
    for run in ordered:
        key = (run.name, run.seed)
        name = run.name if seeds[run.name] == 1 else f"{run.name} (seed {run.seed})"
        runs = {network: runs[key] for network, runs in by_key.items() if key in runs and runs[key].done}
        if "identified" not in runs:
            unfinished.append(name)
            continue
        found.append(Case(name, identified.folder / str(run.settings.parent) / run.folder.name, runs))
    return found, unfinished


def on_heldout(case: Case, data_dir: Path | None) -> OnHeldOut:
    """Evaluate all networks of a case.

    Raises:
        UserError: its runs held different images out, or did not start from the same network.
    """
    config = Config.of(case.identified.folder)
    run = config.run
    for other in case.runs.values():
        theirs = Config.of(other.folder)
        if (theirs.run.holdout, theirs.parent_hash) != (run.holdout, config.parent_hash):
            raise UserError(
                f"{other.folder} and {case.identified.folder} come from different base networks or held "
                "different images out: their figures cannot be compared."
            )
    start = _start(case.identified)
    for other in case.runs.values():
        same = _start(other)
        if start.keys() != same.keys() or not all(torch.equal(value, same[key]) for key, value in start.items()):
            raise UserError(f"{other.folder} and {case.identified.folder} do not start alike.")
    noted = load_json(case.identified.folder / IDENTIFICATION)
    heldout = heldout_of(run, config.data.sha256, data_dir)
    heldout = heldout.at(torch.arange(noted["samples"] + noted["heldout_samples"]))
    halves = Halves.of(heldout, noted["heldout_samples"], case.identified.seed, run.precision)
    with arithmetic(run.precision):
        nets: dict[str, nn.Module] = {"base": load_run(case.base), "replaced": load_run(case.identified.folder)}
        with torch.no_grad():
            for key, parameter in adaptive_parameters(nets["replaced"]).items():
                parameter.copy_(start[f"start.{key}"])
        nets |= {network: load_run(other.folder) for network, other in case.runs.items()}
        rest = {network: halves.on_rest(net) for network, net in nets.items()}
        fitted = halves.on_fitted(nets["identified"]).loss
    return OnHeldOut(rest, fitted, abs(rest["identified"].loss - _last(case.identified, "heldout_loss")))


def _start(run: RunRecord) -> dict[str, Tensor]:
    return {key: value for key, value in load_tensors(run.folder / ACTIVATIONS).items() if "start." in key}


def _last(run: RunRecord, column: str) -> float:
    return float(run.columns[column][-1])


def cost(case: Case) -> Row:
    """Return seconds and epochs. On a loaded machine, the recipe's fastest epoch is the best measure of its cost.

    "fastest": had all epochs of the recipe been as fast as its fastest; "in epochs": the identification's seconds in
    epochs of that speed; "of recipe" and "of fastest": its share of the recipe's seconds, as run and at that speed.
    """
    recipe, seconds = case.runs.get("recipe"), case.seconds("identified")
    row: dict[str, str | float | None] = {
        "replacement": case.name,
        "epochs": None,
        "recipe, s": NOT_RUN,
        "fastest, s": None,
        "longer, s": case.seconds("longer"),
        "steps": len(case.identified.columns["epoch"]) - 1,
        "identified, s": seconds,
        "in epochs": None,
        "of recipe": None,
        "of fastest": None,
    }
    if recipe is None or seconds is None:
        return row
    of_epochs = recipe.columns["seconds"]
    epochs, spent, fastest = int(np.isfinite(of_epochs).sum()), float(np.nansum(of_epochs)), float(np.nanmin(of_epochs))
    return row | {
        "epochs": epochs,
        "recipe, s": spent,
        "fastest, s": epochs * fastest,
        "in epochs": seconds / fastest,
        "of recipe": seconds / spent,
        "of fastest": seconds / (epochs * fastest),
    }


def verdict(case: Case, rest: dict[str, Evaluation]) -> Row:
    """Return each target and whether it was reached; None where the recipe was not run.

    Points of test accuracy above the base network; the held-out loss above the recipe's; the time as a share of the
    recipe's at its fastest epoch.
    """
    base, identified = (case.test(network)[0] or 0.0 for network in ("base", "identified"))
    row: dict[str, str | float | bool | None] = {
        "replacement": case.name,
        "identified, points": identified - base,
        "recipe, points": NOT_RUN,
        f"within {POINTS}": identified >= base - POINTS,
        "held-out loss": None,
        "no worse": None,
        "time": None,
        "at most a tenth": None,
    }
    recipe = case.test("recipe")[0]
    if recipe is None:
        return row
    share = float(str(cost(case)["of fastest"]))
    return row | {
        "recipe, points": recipe - base,
        "held-out loss": Loss(rest["identified"].loss - rest["recipe"].loss),
        "no worse": rest["identified"].loss <= rest["recipe"].loss,
        "time": share,
        "at most a tenth": share <= SHARE_OF_TIME,
    }


def starts(cases: list[Case], found: dict[str, OnHeldOut]) -> list[Row]:
    """Compare the losses from the two initializations of F-Neuron: the problem is convex."""
    rows: list[Row] = []
    for case in cases:
        if case.identified.settings.fc != "F-Neuron random":
            continue
        like = (case.base, case.identified.settings.cnn, "F-Neuron as Tanh")
        for other in cases:
            if (other.base, other.identified.settings.cnn, other.identified.settings.fc) == like:
                mine, theirs = found[case.name], found[other.name]
                differences = {
                    "fitted images": mine.fitted - theirs.fitted,
                    "held-out images": mine.rest["identified"].loss - theirs.rest["identified"].loss,
                    "test images": _last(case.identified, "test_loss") - _last(other.identified, "test_loss"),
                }
                agree = max(map(abs, differences.values())) <= AGREE
                rows.append({"random - as Tanh": f"{case.name} - {other.name}", **differences, "within 1e-3": agree})
    return rows


def wall(out: Report, identified: SuiteRuns, cases: list[Case]) -> None:
    """Report the wall time of the suite without its base networks."""
    runs = [run for run in identified.runs if run.settings.parent and run.done]
    began = min(datetime.fromisoformat(run.environment["started"]) for run in runs)
    ended = max(datetime.fromisoformat(run.done.finished) for run in runs if run.done)
    spent = sum(case.seconds("identified") or 0.0 for case in cases)
    out.note(
        f"The identifications of the suite {identified.name!r} took {(ended - began).total_seconds() / 60:.1f} minutes "
        f"from the first start to the last end, base networks given, comparisons and tests counted ({len(runs)} runs); "
        f"by themselves {spent / 60:.1f} minutes, one after the other."
    )


@click.command(cls=Command)
@click.option("--runs-dir", default=Path("runs"), show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--recipe", default="cpu", show_default=True, help="Suite tuned by the paper's recipe.")
@click.option("--identified", default="identify", show_default=True, help="The same, identified.")
@click.option("--longer", default="longer", show_default=True, help="The recipe for longer, where it was run.")
@images_dir_option
@json_option
@markdown_option
def main(
    runs_dir: Path,
    recipe: str,
    identified: str,
    longer: str,
    data_dir: Path | None,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Compare accuracy, loss and cost of identification with the paper's recipe, for every replacement."""
    suites = {name: read_suite(runs_dir / name) for name in (recipe, identified)}
    long = read_suite(runs_dir / longer) if (runs_dir / longer).is_dir() else None
    cases, unfinished = cases_of(suites[recipe], suites[identified], long)
    if not cases:
        raise UserError(f"The suite {identified!r} has no replacement that is finished.")
    with report(json_path, markdown_path) as out:
        found = {case.name: on_heldout(case, data_dir) for case in cases}
        _figures(out, cases, found)
        out.table("Cost of training and of identification", [cost(case) for case in cases])
        out.note(
            "Fastest: had all epochs of the recipe been as fast as its fastest. In epochs: the seconds of the "
            "identification in epochs of that speed. Its share of the recipe's seconds: as run, and at that speed."
        )
        for case in (case for case in cases if "longer" in case.runs):
            out.note(f"Longer, {case.name}: {case.runs['longer'].settings.epochs} epochs")
        verdicts = [verdict(case, found[case.name].rest) for case in cases]
        out.table("What was to be reached", verdicts)
        out.note(
            "Points: test accuracy above the base network's. Held-out loss: that of the identified network "
            "above that of the recipe's. Time: the share of the recipe's at its fastest epoch."
        )
        if rows := starts(cases, found):
            out.table("F-Neuron: difference in loss between its two starts, once identified", rows)
        for key in (f"within {POINTS}", "no worse", "at most a tenth"):
            judged = [row[key] for row in verdicts if row[key] is not None]
            out.note(f"{key}: {sum(map(bool, judged))} of {len(judged)}")
        wall(out, suites[identified], cases)
        worst = max(on.difference for on in found.values())
        out.note(f"The held-out losses differ from those that the identifications noted by at most {worst:.1e}.")
        if unfinished:
            out.note(f"Not identified, and not counted: {', '.join(unfinished)}")


def _figures(out: Report, cases: list[Case], found: dict[str, OnHeldOut]) -> None:
    tables: dict[str, list[Row]] = {}
    for case in cases:
        for network in NETWORKS:
            accuracy, loss = case.test(network)
            empty = NOT_RUN if network == "recipe" and network not in case.runs else None
            there = found[case.name].rest.get(network)
            figures = {
                "Test accuracy, %": accuracy,
                "Test loss": loss,
                "Loss on held-out images not fitted": Loss(there.loss) if there else None,
                "Accuracy on these, %": 100 * there.accuracy if there else None,
            }
            for title, figure in figures.items():
                rows = tables.setdefault(title, [])
                if network == NETWORKS[0]:
                    rows.append({"replacement": case.name})
                rows[-1] = {**rows[-1], network: empty if figure is None else figure}
    for title, rows in tables.items():
        out.table(title, rows)


if __name__ == "__main__":
    main()
