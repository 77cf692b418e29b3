"""The authors' words for activations, as on their command line and in the names of their files.

`Words.settings` translates them into settings of a run, `suite_commands` the settings of a suite's runs into commands.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from aafit.activations import is_adaptive
from aafit.errors import UserError
from aafit.experiment.devices import slots
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.method import METHODS
from aafit.experiment.runs.suite import Suite

FAMILIES = {"base": None, "ahaf": "AHAF", "leaf": "LEAF", "fuzzy_ffn": "F-Neuron"}
TYPES = [*FAMILIES, "ahaf_shared", "leaf_shared", "fuzzy_ffn_shared"]
FUNCTIONS = ["ReLU", "SiLU", "Tanh", "Sigmoid"]
STARTS = [*FUNCTIONS, "Random"]
ACTS = {**{act: [act] for act in STARTS}, "all": FUNCTIONS, "all_lus": ["ReLU", "SiLU"], "all_bfs": ["Tanh", "Sigmoid"]}
NETWORKS = {"LeNet-5": "lenet5", "KerasNet": "kerasnet"}
DATASETS = {"F-MNIST": "Fashion-MNIST", "CIFAR-10": "CIFAR-10", "MNIST-5k": "MNIST-5k"}
"""Data sets by the authors' names; the last one is not theirs."""

SCRIPT = ["./run_experiment.sh", "experiments/train_individual.py"]
GIVEN = ("precision", "lr", "holdout", "train_images", "knots", *METHODS["gauss-newton"].settings)
"""Settings that are given where they are not the default, by a flag of the same name or of `FLAG_NAMES`."""
FLAG_NAMES = {"heldout": "--heldout-share", "holdout": "--heldout-images"}


@dataclass(frozen=True)
class Words:
    """A TYPE with its --acts and --act_cnn, and the activation of the base network that it replaces."""

    kind: str
    act: str
    act_cnn: str | None
    base: str

    def settings(self) -> dict[str, str]:
        """Return the settings cnn, fc and sharing that the words stand for."""
        family, cnn = FAMILIES[self.kind.removesuffix("_shared")], self.act_cnn or self.act
        if family is None:
            return {"cnn": cnn, "fc": self.act, "sharing": "layer"}
        sharing = "layer" if self.kind.endswith("_shared") else "neuron"
        if family == "F-Neuron":
            # F-Neurons are for the fully connected layers: the CNN layers keep a fixed function.
            return {"cnn": self.act_cnn or self.base, "fc": _adaptive(family, self.act), "sharing": sharing}
        return {"cnn": _adaptive(family, cnn), "fc": _adaptive(family, self.act), "sharing": sharing}


def words_for(cnn: str, fc: str, sharing: str) -> Words | None:
    """Return the words for these settings, whatever the base network; None if there are none."""
    wanted = {"cnn": cnn, "fc": fc, "sharing": sharing}
    if not (is_adaptive(cnn) or is_adaptive(fc)):
        wanted["sharing"] = "layer"
    for kind, act, act_cnn in product(TYPES, STARTS, [None, *STARTS]):
        words = Words(kind, act, act_cnn, base="")
        if words.settings() == wanted:
            return words
    return None


def _adaptive(family: str, act: str) -> str:
    return f"{family} random" if act == "Random" else f"{family} as {act}"


def find_checkpoint(
    folders: list[Path],
    words: Words,
    network: str,
    data_set: str,
    optimizer: str,
    epoch: int,
    marks: dict[str, bool],
) -> Path | None:
    """Return the authors' checkpoint of this network, None if there is none.

    Their names, as kerasnet_cifar10_Tanh_ReLU_patched_tuned_leaf_shared_adam_p24sl_500ep_checkp.bin, consist of
    network, data set, activations, `patched`, `tuned`, TYPE, optimizer, `dspu4`, `p24sl` and epochs. Only newer names
    have the activation of the base network, which must then be `words.base`.

    Args:
        folders: where to look, subfolders included.
        marks: whether the name must or must not contain `patched`, `tuned`, `dspu4` and `p24sl`.
    """
    family = FAMILIES[words.kind.removesuffix("_shared")]
    if family == "F-Neuron" and words.act_cnn is None and words.base != words.act:
        return None  # in their program the CNN layers have the function --acts then, not the base's
    cnn = [words.act_cnn.lower()] if words.act_cnn not in (None, words.act) else []
    head = [NETWORKS[network], *_tokens(data_set.replace("-", "")), words.act.lower(), *cnn]
    tail = [*words.kind.split("_"), optimizer, f"{epoch}ep", "checkp", *(mark for mark, on in marks.items() if on)]
    base = words.base.lower() if marks["patched"] else ""
    files = sorted({file.absolute() for folder in folders for file in folder.rglob("*_checkp.bin")})
    matching = [file for file in files if _matches(file, head, tail, base)]
    if len(matching) > 1:
        names = ", ".join(map(str, matching))
        raise UserError(f"More than one of the authors' checkpoints matches: {names}. Choose one by --init-from.")
    return matching[0] if matching else None


def _tokens(name: str) -> list[str]:
    """Return the parts of a name; the authors write networks and data sets in lower case, sometimes with hyphens."""
    return [part for part in name.lower().replace("-", "").split("_") if part]


def _matches(file: Path, head: list[str], tail: list[str], base: str) -> bool:
    tokens = _tokens(file.stem)
    if tokens[: len(head)] != head:
        return False
    rest = tokens[len(head) :]
    for token in tail:
        if token not in rest:
            return False
        rest.remove(token)
    return rest in ([], [base], ["from", base])


def suite_commands(suite: Suite, device: str, folder_options: Sequence[str], suite_options: Sequence[str]) -> str:
    """Return the commands that give the results of a suite, by stage, each after those of its parents.

    Args:
        device: as in `aafit.experiment.devices.slots`.
        folder_options: options for folders, added to each command.
        suite_options: options of the last command, which writes the report.
    """
    slot = slots(device, 1)[0]
    before = [f"CUDA_VISIBLE_DEVICES={slot.environment['CUDA_VISIBLE_DEVICES']}"] if ":" in device else []
    where = ["--dev", "gpu" if slot.device == "cuda" else "cpu"]
    where += ["--threads", str(slot.threads)] if slot.threads else []
    depth: dict[str | None, int] = {None: -1}
    groups: dict[tuple[int, str], list[RunConfig]] = {}
    for run in suite.runs:
        depth[run.name] = depth[run.parent] + 1
        groups.setdefault((depth[run.name], run.stage), []).append(run)
    lines = [f"# {suite.description or suite.name}. The commands of one stage can run side by side."]
    for (_, stage), runs in sorted(groups.items(), key=lambda group: group[0][0]):
        parents = list(dict.fromkeys(run.parent for run in runs if run.parent is not None))
        after = f", after {', '.join(parents)}" if parents else ""
        lines += ["", f"# {f'Stage {stage}' if stage else 'Runs'}{after}"]
        for seed, run in product(suite.seeds, runs):
            parent = None if run.parent is None else suite.run(run.parent)
            words = [*SCRIPT, *_flags(run, parent, suite.name), "--seed", str(seed), *where, *folder_options]
            lines.append(" ".join([*before, shlex.join(words)]))
    last = shlex.join(["./run_experiment_all.sh", *suite_options])
    return "\n".join([*lines, "", "# Tables, figures and the report, once all are done", last])


def _flags(run: RunConfig, parent: RunConfig | None, suite: str) -> list[str]:
    """Return the flags of `aafit train` for the settings of a run."""
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
        resumes = same and run.takes_gradient_steps
        flags += ["--new-optimizer"] if resumes and not run.resume_optimizer else []
    if run.init_from is not None:
        flags += ["--init-from", str(run.init_from.absolute())]
    flags += ["--tune_aaf"] if run.train == "activations" and run.takes_gradient_steps else []
    flags += ["--train", run.train] if run.epochs == 0 and run.train != "none" else []
    flags += ["--method", run.method] if run.method != RunConfig.model_fields["method"].default else []
    data_set = next(word for word, name in DATASETS.items() if name == run.dataset)
    flags += ["--net", run.network, "--ds", data_set, "--opt", run.optimizer, "--bs", str(run.batch_size)]
    flags += [f"--{key}" for key in ("p24sl", "dspu4") if getattr(run, key)]
    flags += [f"--no-{key}" for key in ("augment", "shuffle") if not getattr(run, key)]
    for key in GIVEN:
        if (value := getattr(run, key)) != RunConfig.model_fields[key].default:
            flags += [FLAG_NAMES.get(key, f"--{key.replace('_', '-')}"), str(value)]
    flags += ["--interval", *map(str, run.interval)] if run.interval != (-4.0, 4.0) else []
    return [*flags, "--folder", f"{suite}/{run.name}", *(["--stage", run.stage] if run.stage else [])]
