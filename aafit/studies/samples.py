"""The samples of a study, kept in memory so that each of its parts sees the same ones."""

import hashlib
import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aafit.errors import UserError, check_seed, is_number
from aafit.identification.samples import ENOUGH_TO_HOLD_OUT, HELDOUT, check_memory
from aafit.networks.batches import Batch, each_batch

EXAMPLE = 256  # most samples of the example that activations are replaced with
SHARED = 0.1  # share of held-out samples that may be fitted too: data sets contain duplicates

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudySamples:
    """The fitted and the held-out samples.

    Attributes:
        fitted: Batches that the activations are identified from.
        heldout: Batches that take no part in the identification; empty if there are none.
        sha256: SHA-256 of the fitted and of the held-out samples.
    """

    fitted: list[Batch]
    heldout: list[Batch]
    sha256: tuple[str, str]

    @classmethod
    def load(
        cls, batches: Iterable[Any], heldout: Iterable[Any] | None, share: float | None, memory: int, seed: int
    ) -> "StudySamples":
        """Load all batches into memory, and hold out a share of them where there are no held-out batches.

        Args:
            batches: The samples to fit, or to split.
            heldout: The samples to hold out.
            share: Share of `batches` to hold out, if `heldout` is None; None: 0.2 of 500 samples or more, 0 of fewer.
            memory: Bytes that the batches of either kind may take.
            seed: Seed of the choice of the held-out samples.

        Raises:
            UserError: There is no sample; the batches take too much memory; both `heldout` and `share` are given; the
                share is not from 0 to below 1, or leaves no sample on one side; all held-out samples are among the
                others.

        Warns:
            UserWarning: More than a tenth of the held-out samples are among the others.
        """
        check_memory(memory)
        check_seed(seed)
        fitted = _loaded(batches, "batches", memory)
        if heldout is not None:
            if share:
                raise UserError("Give held-out batches (heldout=) or a share to hold out (heldout_share=), not both.")
            heldout_batches = _loaded(heldout, "held-out batches", memory)
            _check_apart(fitted, heldout_batches)
        else:
            if share is None:
                share = HELDOUT if sum(map(len, fitted)) >= ENOUGH_TO_HOLD_OUT else 0.0
            if not (is_number(share) and 0 <= share < 1):
                raise UserError(f"heldout_share={share} is no share: give a number from 0 to below 1, such as 0.2.")
            fitted, heldout_batches = _split(fitted, share, seed)
        count = sum(map(len, fitted))
        if count < 2:
            raise UserError("There is one sample to fit; a study needs at least 2.")
        log.info("%d samples are fitted, %d are held out to evaluate on", count, sum(map(len, heldout_batches)))
        return cls(fitted, heldout_batches, (_sha256(fitted), _sha256(heldout_batches)))

    @property
    def evaluated(self) -> list[Batch]:
        """The samples that the networks are compared on: the held-out ones, or else the fitted ones."""
        return self.heldout or self.fitted

    @property
    def labelled(self) -> bool:
        """Whether every fitted batch has a target."""
        return all(batch.target is not None for batch in self.fitted)

    @property
    def example(self) -> Batch:
        """The sample for `replace_activations`: the inputs of the first batch, at most `EXAMPLE` samples.

        It is not larger than a batch, because the network can be expected to have memory for one.
        """
        first = first_samples(self.fitted, EXAMPLE)[0]
        return first.without_target()


def first_samples(batches: Iterable[Batch], count: int) -> list[Batch]:
    """Return batches with the first `count` samples; the last one may be smaller."""
    chosen: list[Batch] = []
    for batch in batches:
        if count <= 0:
            break
        chosen.append(batch.part(0, count) if len(batch) > count else batch)
        count -= len(chosen[-1])
    return chosen


def _loaded(batches: Iterable[Any], what: str, memory: int) -> list[Batch]:
    loaded: list[Batch] = []
    taken = 0
    for batch in each_batch(batches):
        taken += sum(tensor.nbytes for tensor in batch.tensors())
        if taken > memory:
            raise UserError(
                f"The {what} take more than {memory / 2**30:.3g} GiB. A study needs a few thousand samples: give "
                "fewer, or a larger memory=."
            )
        loaded.append(batch)
    if not loaded:
        raise UserError(f"The {what} hold no sample to study.")
    return loaded


def _check_apart(fitted: Sequence[Batch], heldout: Sequence[Batch]) -> None:
    """Check that held-out samples, with their targets, are not among those to fit; warn if many are.

    Raises:
        UserError: All of them are.
    """
    to_fit, judged = (
        [_sha256([batch.part(row, row + 1)]) for batch in batches for row in range(len(batch))]
        for batches in (fitted, heldout)
    )
    known = set(to_fit)
    shared = sum(sample in known for sample in judged)
    overlap = f"{shared} of the {len(judged)} held-out samples are among those to fit"
    if shared == len(judged):
        raise UserError(f"{overlap}, and show no gain on new ones: give others as heldout=, or a heldout_share=.")
    if shared > SHARED * len(judged):
        warnings.warn(f"{overlap}: on these the gain is too favourable.", stacklevel=4)


def _split(batches: list[Batch], share: float, seed: int) -> tuple[list[Batch], list[Batch]]:
    """Hold out a random share of the samples."""
    count = sum(map(len, batches))
    number = round(share * count)
    if not share:
        return batches, []
    if number in (0, count):
        raise UserError(f"heldout_share={share} of {count} samples leaves none to {'fit' if number else 'hold out'}.")
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:number]] = True
    parts = list(zip(batches, chosen.split([len(batch) for batch in batches]), strict=True))
    fitted, heldout = (
        [batch.at(rows.nonzero().flatten().to(batch.device)) for batch, rows in pairs if rows.any()]
        for pairs in ([(batch, ~rows) for batch, rows in parts], parts)
    )
    return fitted, heldout


def _sha256(batches: Iterable[Batch]) -> str:
    """Return the SHA-256 of the inputs and targets of all batches, in their order."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in batch.tensors():
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        digest.update(f"|{batch.axis}".encode())
    return digest.hexdigest()
