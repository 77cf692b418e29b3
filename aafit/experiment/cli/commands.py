"""What a suite does as a list of commands, to be run by hand, side by side or on several machines."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from aafit.activations import is_adaptive
from aafit.experiment.cli.authors import DATASETS, FAMILIES, FUNCTIONS, words_for
from aafit.experiment.devices import slots
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.suite import Suite

SCRIPT = ["./run_experiment.sh", "experiments/train_individual.py"]
DATA_SETS = {name: word for word, name in DATASETS.items()}


def commands(suite: Suite, device: str, elsewhere: Sequence[str], again: Sequence[str]) -> str:
    """The commands that leave what the suite leaves, by stage, each after those that it comes from.

    Args:
        device: as `slots` takes it.
        elsewhere: options for folders, for each command.
        again: the options of the suite's own command, which makes the tables when all is done.
    """
    place = slots(device, 1)[0]
    before = [f"CUDA_VISIBLE_DEVICES={place.environment['CUDA_VISIBLE_DEVICES']}"] if ":" in device else []
    here = ["--dev", "gpu" if place.device == "cuda" else "cpu"]
    here += ["--threads", str(place.threads)] if place.threads else []
    depth: dict[str | None, int] = {None: -1}
    groups: dict[tuple[int, str], list[RunConfig]] = {}
    for run in suite.runs:
        depth[run.name] = depth[run.parent] + 1
        groups.setdefault((depth[run.name], run.stage), []).append(run)
    lines = [f"# {suite.description or suite.name}. The commands of a stage can go side by side."]
    for (_, stage), runs in sorted(groups.items(), key=lambda group: group[0][0]):
        parents = list(dict.fromkeys(run.parent for run in runs if run.parent is not None))
        after = f", after {', '.join(parents)}" if parents else ""
        lines += ["", f"# {f'Stage {stage}' if stage else 'Runs'}{after}"]
        for seed in suite.seeds:
            for run in runs:
                parent = None if run.parent is None else suite.run(run.parent)
                words = [*SCRIPT, *_flags(run, parent, suite.name), "--seed", str(seed), *here, *elsewhere]
                lines.append(" ".join([*before, shlex.join(words)]))
    lines += [
        "",
        "# Tables, figures and the report, once all are done",
        shlex.join(["./run_experiment_all.sh", *again]),
    ]
    return "\n".join(lines)


def show_commands(folders: Sequence[Path], out: Path | None) -> str:
    """A command for the pictures of each of these run folders."""
    more = [] if out is None else ["--out", str(out.absolute())]
    return "\n".join(shlex.join(["./show_aaf_all.sh", str(folder.absolute()), *more]) for folder in folders)


def _flags(run: RunConfig, parent: RunConfig | None, suite: str) -> list[str]:
    """The flags that stand for the run's settings; the tests compare what they are read as."""
    base = parent.cnn if parent is not None and parent.cnn == parent.fc and parent.cnn in FUNCTIONS else None
    words = words_for(run.cnn, run.fc, run.sharing)
    if words is not None:
        flags = [words.kind, "--acts", words.act, *(["--act_cnn", words.act_cnn] if words.act_cnn else [])]
    else:
        texts = [text for text in (run.fc, run.cnn) if is_adaptive(text)]
        kind = next((kind for kind, family in FAMILIES.items() if texts and family == texts[0].split()[0]), "base")
        flags = [kind, "--acts", base or "ReLU", "--cnn", run.cnn, "--fc", run.fc, "--sharing", run.sharing]
    flags += ["--start_ep", str(run.start_epoch), "--end_ep", str(run.end_epoch)]
    if parent is not None:
        same = (run.cnn, run.fc, run.sharing) == (parent.cnn, parent.fc, parent.sharing)
        flags += [] if same else ["--patch_base", *(["--patched_from_af", base] if base else [])]
        flags += ["--from", f"{suite}/{parent.name}"]
        goes_on = same and run.takes_gradient_steps
        flags += ["--new-optimizer"] if goes_on and not run.resume_optimizer else []
    if run.init_from is not None:
        flags += ["--init-from", str(run.init_from.absolute())]
    flags += ["--tune_aaf"] if run.train == "activations" and run.takes_gradient_steps else []
    flags += ["--train", run.train] if run.epochs == 0 and run.train != "none" else []
    flags += ["--method", run.method] if run.method != RunConfig.model_fields["method"].default else []
    flags += ["--net", run.network, "--ds", DATA_SETS[run.dataset], "--opt", run.optimizer, "--bs", str(run.batch_size)]
    for key, flag in (("p24sl", "--p24sl"), ("dspu4", "--dspu4")):
        flags += [flag] if getattr(run, key) else []
    for key, flag in (("augment", "--no-augment"), ("shuffle", "--no-shuffle")):
        flags += [flag] if not getattr(run, key) else []
    for key in (
        "precision",
        "lr",
        "holdout",
        "train_images",
        "knots",
        "target",
        "heldout",
        "curvature",
        "ridge",
        "budget",
    ):
        value = getattr(run, key)
        flags += [f"--{key.replace('_', '-')}", str(value)] if value != RunConfig.model_fields[key].default else []
    flags += ["--interval", *map(str, run.interval)] if run.interval != (-4.0, 4.0) else []
    return [*flags, "--folder", f"{suite}/{run.name}", *(["--stage", run.stage] if run.stage else [])]
