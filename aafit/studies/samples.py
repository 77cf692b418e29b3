"""The samples of a study: kept, so that each of its parts sees the same, and known by a fingerprint."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from aafit.errors import UserError
from aafit.networks.batches import Batch, as_batch

EXAMPLE = 256
AT_ONCE = 128


@dataclass(frozen=True)
class Samples:
    """What a study identifies on, and what it judges on.

    Attributes:
        fitted, judged: Batches; the same where none were held out.
        fitted_sha256, heldout_sha256: Their fingerprints, the second None where none were held out.
    """

    fitted: list[Batch]
    judged: list[Batch]
    fitted_sha256: str
    heldout_sha256: str | None

    @classmethod
    def gathered(cls, batches: Iterable[Any], heldout: Iterable[Any] | None, memory: int) -> "Samples":
        """All of both.

        Raises:
            UserError: there is no sample, or one of the two takes more than `memory` bytes.
        """
        fitted = _gathered(batches, "batches", memory)
        if heldout is None:
            return cls(fitted, fitted, fingerprint(fitted), None)
        judged = _gathered(heldout, "heldout", memory)
        return cls(fitted, judged, fingerprint(fitted), fingerprint(judged))

    @property
    def labelled(self) -> bool:
        """Whether every batch to identify on has a target."""
        return all(batch.target is not None for batch in self.fitted)

    @property
    def example(self) -> Batch:
        """What the fits of the replacements look at: the first batch, cut to `EXAMPLE` samples.

        No more, as the size of a batch tells what the network has memory for.
        """
        first = first_of(self.fitted, EXAMPLE)[0]
        return Batch(first.args, first.kwargs)

    @property
    def at_once(self) -> int:
        """Samples that the network is given at once: no more than it got in one batch."""
        return min(AT_ONCE, max(map(len, self.fitted)))


def first_of(batches: Iterable[Batch], samples: int) -> list[Batch]:
    """The first so many samples."""
    chosen: list[Batch] = []
    for batch in batches:
        if samples <= 0:
            break
        chosen.append(batch.part(0, samples) if len(batch) > samples else batch)
        samples -= len(chosen[-1])
    return chosen


def fingerprint(batches: Iterable[Batch]) -> str:
    """SHA-256 of the inputs and targets of all batches, in their order."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in batch.tensors():
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        digest.update(b"|")
    return digest.hexdigest()


def _gathered(batches: Iterable[Any], what: str, memory: int) -> list[Batch]:
    kept: list[Batch] = []
    taken = 0
    for given in batches:
        batch = as_batch(given)
        if len(batch) == 0:
            continue
        taken += sum(tensor.nbytes for tensor in batch.tensors())
        if taken > memory:
            raise UserError(
                f"The {what} take more than {memory / 2**30:.3g} GiB: a study needs a few thousand samples; give "
                "fewer, or a larger memory=."
            )
        kept.append(batch)
    if not kept:
        raise UserError(f"There is nothing to study: the {what} hold no sample.")
    return kept
