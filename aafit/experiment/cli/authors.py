"""The authors' words for activations, on their command line and in the names of their files."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from aafit.activations import is_adaptive
from aafit.errors import UserError

FAMILIES = {"base": None, "ahaf": "AHAF", "leaf": "LEAF", "fuzzy_ffn": "F-Neuron"}
TYPES = [*FAMILIES, "ahaf_shared", "leaf_shared", "fuzzy_ffn_shared"]
FUNCTIONS = ["ReLU", "SiLU", "Tanh", "Sigmoid"]
STARTS = [*FUNCTIONS, "Random"]
ACTS = {**{act: [act] for act in STARTS}, "all": FUNCTIONS, "all_lus": ["ReLU", "SiLU"], "all_bfs": ["Tanh", "Sigmoid"]}
NETWORKS = {"LeNet-5": "lenet5", "KerasNet": "kerasnet"}
DATASETS = {"F-MNIST": "Fashion-MNIST", "CIFAR-10": "CIFAR-10", "MNIST-5k": "MNIST-5k"}
"""The last one is not the authors'."""


@dataclass(frozen=True)
class Words:
    """A TYPE with its --acts and --act_cnn, and the function of the base network that it replaces."""

    kind: str
    act: str
    act_cnn: str | None
    base: str

    def texts(self) -> dict[str, str]:
        """The settings cnn, fc and sharing that they stand for."""
        family, cnn = FAMILIES[self.kind.removesuffix("_shared")], self.act_cnn or self.act
        if family is None:
            return {"cnn": cnn, "fc": self.act, "sharing": "layer"}
        sharing = "layer" if self.kind.endswith("_shared") else "neuron"
        if family == "F-Neuron":
            # F-Neurons are for the fully connected layers: the CNN layers keep a fixed function.
            return {"cnn": self.act_cnn or self.base, "fc": _adaptive(family, self.act), "sharing": sharing}
        return {"cnn": _adaptive(family, cnn), "fc": _adaptive(family, self.act), "sharing": sharing}


def words_for(cnn: str, fc: str, sharing: str) -> Words | None:
    """The words for these activations, whatever base network they are put into; None where there are none."""
    wanted = {"cnn": cnn, "fc": fc, "sharing": sharing}
    if not (is_adaptive(cnn) or is_adaptive(fc)):
        wanted["sharing"] = "layer"
    for kind, act, act_cnn in product(TYPES, STARTS, [None, *STARTS]):
        words = Words(kind, act, act_cnn, base="")
        if words.texts() == wanted:
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
    """The authors' file of this network, such as kerasnet_cifar10_Tanh_ReLU_patched_tuned_leaf_shared_adam_p24sl_...

    Their names say network, data set, activations, `patched`, `tuned`, TYPE, optimizer, `dspu4`, `p24sl` and epochs.
    What the activations were put into is in newer names only, and then it must be `words.base`.

    Args:
        folders: where to look, with all folders in them.
        marks: which of the four words the name must have, and which it must not have.

    Raises:
        UserError: more than one file fits.
    """
    own = FAMILIES[words.kind.removesuffix("_shared")]
    if own == "F-Neuron" and words.act_cnn is None and words.base != words.act:
        return None  # their CNN layers have the function --acts then, not the base's
    cnn = [words.act_cnn] if words.act_cnn not in (None, words.act) else []
    head = [
        NETWORKS[network],
        *_tokens(data_set.replace("-", "")),
        words.act.lower(),
        *(one.lower() for one in cnn if one),
    ]
    tail = [*words.kind.split("_"), optimizer, f"{epoch}ep", "checkp", *(mark for mark, on in marks.items() if on)]
    found = [
        file for file in _files(folders) if _fits(file, head, tail, words.base.lower() if marks["patched"] else "")
    ]
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise UserError(f"More than one of the authors' checkpoints fits: {listed}. Name one by --init-from.")
    return found[0] if found else None


def _files(folders: list[Path]) -> Iterator[Path]:
    known = set()
    for file in sorted(file.absolute() for folder in folders for file in folder.rglob("*_checkp.bin")):
        if file not in known:
            known.add(file)
            yield file


def _tokens(name: str) -> list[str]:
    """The parts of a name; the authors write networks and data sets in lower case, hyphens now and then."""
    return [part for part in name.lower().replace("-", "").split("_") if part]


def _fits(file: Path, head: list[str], tail: list[str], base: str) -> bool:
    tokens = _tokens(file.stem)
    if tokens[: len(head)] != head:
        return False
    rest = tokens[len(head) :]
    for token in tail:
        if token not in rest:
            return False
        rest.remove(token)
    return rest in ([], [base], ["from", base])
