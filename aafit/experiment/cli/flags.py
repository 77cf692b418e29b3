"""The authors' flags, and those that a suite's settings need besides."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from aafit.errors import UserError
from aafit.experiment.cli.options import given
from aafit.experiment.runs.config import METHODS, folder_name

LONGEST = 100  # letters of a folder's name
FORM = ("cnn", "fc", "sharing", "interval", "knots")
FOUND = ("target", "heldout", "curvature", "ridge", "budget")
IN_NAME = (*FORM, *FOUND, "lr", "train", "train_images", "from_run")
"""Options that a folder's name has where they are given."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """One command; the fields are the options of `aafit train`."""

    kind: str
    net: str
    ds: str
    opt: str
    seed: int
    bs: int
    acts: str
    act_cnn: str | None
    start_ep: int
    end_ep: int
    patch_base: bool
    patched: bool
    patched_from_af: str | None
    tune_aaf: bool
    train: str | None
    tuned: bool
    p24sl: bool
    dspu4: bool
    precision: str
    init_from: Path | None
    from_run: str | None
    cnn: str | None
    fc: str | None
    sharing: str | None
    interval: tuple[float, float] | None
    knots: int | None
    method: str
    target: str | None
    heldout: float | None
    curvature: str | None
    ridge: float | None
    budget: float | None
    lr: float | None
    holdout: int
    train_images: int | None
    no_augment: bool
    no_shuffle: bool
    new_optimizer: bool
    folder: str | None
    stage: str

    def check(self) -> None:
        """Refuse flags that contradict each other.

        Raises:
            UserError: they do.
        """
        if self.end_ep < self.start_ep:
            raise UserError(f"--end_ep {self.end_ep} lies before --start_ep {self.start_ep}.")
        if self.init_from is not None and self.from_run is not None:
            raise UserError("--init-from and --from both say what the run begins with: give one of them.")
        if self.patch_base and self.patched:
            raise UserError(
                "--patch_base replaces the activations of a base network, --patched goes on after that: give one."
            )
        if self.patched and not self.start_ep:
            raise UserError("--patched goes on with a run: say after which epoch, by --start_ep.")
        if self.folder is not None:
            if self.folder.count("/") != 1:
                raise UserError(f"--folder {self.folder} is not of the form SUITE/RUN, such as paper/base-relu.")
            for part in self.folder.split("/"):
                folder_name(part)

    def name(self, network: str, data_set: str, act: str) -> str:
        """The run's folder: all flags that make it another run, the base network among them."""
        if self.folder is not None:
            return self.folder.split("/")[1]
        words = [network, data_set, self.kind, act]
        words += [f"cnn_{self.act_cnn}"] * (self.act_cnn is not None)
        words += [f"from_{self.patched_from_af or act}"] * (self.patch_base or self.patched)
        marks = {"patched": self.patched, "tuned": self.tuned, "tune": self.tune_aaf, "p24sl": self.p24sl}
        marks |= {"dspu4": self.dspu4, METHODS[self.method].folder_mark: bool(METHODS[self.method].folder_mark)}
        marks |= {"noaugment": self.no_augment}
        marks |= {"noshuffle": self.no_shuffle, "newoptimizer": self.new_optimizer}
        words += [word for word, on in marks.items() if on]
        words += [self.opt, f"bs{self.bs}"] + [self.precision] * (self.precision != "float32")
        words += [f"holdout{self.holdout}"] * (self.holdout > 0)
        values = given({key: getattr(self, key) for key in IN_NAME})
        words += [f"{key}_{_plain(value)}" for key, value in values.items()]
        return name_of([*words, f"{self.start_ep}-{self.end_ep}"])


def name_of(words: Sequence[str]) -> str:
    """A folder's name with these words; one that would be too long ends in what tells it from all others."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join(words))
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{sha256(name.encode()).hexdigest()[:8]}"


def _plain(value: object) -> str:
    """A value as part of a folder's name."""
    text = "_".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return "".join(letter if letter.isalnum() or letter in ".+_" else "_" for letter in text)
