"""Run a network on batches of any form: the one place where the library calls networks.

`Predictor` never modifies its inputs, gives random networks the same random numbers for every batch, applies autocast,
selects the output, and returns it in float32 or float64. It leaves the mode, training or evaluation, to its caller.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aafit.errors import UserError, check_name
from aafit.networks.batches import Batch, Output, call, run, takes_inputs
from aafit.networks.frozen_prefix import split_network
from aafit.networks.running import check_module, fork_rng, without_fast_path
from aafit.training.precision import PRECISIONS, autocast

NO_GRADIENT = (
    "The loss has no gradient with respect to any adaptive parameter: the forward pass does not use them, or detaches "
    "what depends on them (detach, torch.no_grad, re-entrant checkpointing)."
)
SEED = 0
"""Seed of the random numbers of every batch: two networks that draw some draw the same ones for the same batch."""


class Predictor:
    """Computes the outputs of a network.

    Args:
        net: any network; it runs in the mode that it is in.
        output: function that selects the output tensor from what the network returns, see `aafit.networks.batches.run`.
        precision: "bf16" for autocast; otherwise the network computes in the data type of its parameters.
        batch_size: samples of a batch where the predictor forms batches itself, in `over`; None: all in one batch.

    Raises:
        UserError: the network is no module, or the precision is unknown.
    """

    def __init__(
        self, net: nn.Module, output: Output | None = None, precision: str = "float32", batch_size: int | None = None
    ) -> None:
        check_module(net)
        self.net, self.output, self.batch_size = net, output, batch_size
        self.precision = check_name("precision", precision, PRECISIONS)

    def of(self, net: nn.Module) -> "Predictor":
        """Return a predictor with the same settings for another network."""
        return Predictor(net, self.output, self.precision, self.batch_size)

    def __call__(self, batch: Batch, parameters: dict[str, Tensor] | None = None, seed: int | None = SEED) -> Tensor:
        """Return the outputs for a batch, (B, ...), at least in float32.

        Args:
            batch: inputs of the network; they are copied, since the network may work in place.
            parameters: tensors to use in place of the network's parameters, by name.
            seed: of torch's random numbers during the call; None: those that come next, as training needs.

        Raises:
            UserError: as `aafit.networks.batches.run`.
        """
        net = self.net if not parameters else partial(_functional, self.net, parameters)
        with self._forward(batch, seed) as inputs:
            outputs = run(net, inputs, self.output)
        return outputs if outputs.dtype == torch.float64 else outputs.float()

    def forward(self, batch: Batch) -> None:
        """Run the network on a batch, as `__call__`, for what hooks see of it; no output is selected."""
        with torch.no_grad(), self._forward(batch, SEED) as inputs:
            call(self.net, inputs)

    @contextmanager
    def _forward(self, batch: Batch, seed: int | None) -> Iterator[Batch]:
        """Within the block compute as this predictor does; yields a copy of the inputs."""
        if not batch.kwargs and all(type(x) is Tensor for x in batch.args):  # as nearly always, and in every step
            inputs = Batch(tuple(x.clone() for x in batch.args), {}, axis=batch.axis)
        else:
            inputs = batch.without_target().cloned()
        precision = autocast(self.precision, batch.device) if self.precision == "bf16" else nullcontext()
        with precision, without_fast_path(), nullcontext() if seed is None else fork_rng(seed):
            yield inputs

    def over(
        self, data: Batch | Iterable[Batch], parameters: dict[str, Tensor] | None = None
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Yield each batch with its outputs, without gradients; a single `Batch` is divided into batches first."""
        for batch in self.batches(data):
            with torch.no_grad():
                outputs = self(batch, parameters)
            yield batch, outputs

    def outputs(self, data: Batch | Iterable[Batch], parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Return the outputs for all samples, (N, ...), without gradients.

        Raises:
            UserError: those of different batches differ in more than the number of samples.
        """
        outputs = [outputs for _, outputs in self.over(data, parameters)]
        if len({each.shape[1:] for each in outputs}) > 1:
            shapes = " and ".join(str(tuple(shape)) for shape in dict.fromkeys(each.shape for each in outputs))
            raise UserError(f"The outputs of different batches have the shapes {shapes}: let output= give one shape.")
        return torch.cat(outputs)

    def batches(self, data: Batch | Iterable[Batch]) -> Iterable[Batch]:
        """Return the batches of the data: those given, or pieces of `batch_size` samples of a single `Batch`."""
        return data.batches(self.batch_size or max(1, len(data))) if isinstance(data, Batch) else data

    def after_prefix(self, data: Batch | Iterable[Batch], memory: int) -> "tuple[Predictor, list[Batch]] | None":
        """Compute once what does not depend on the adaptive activations.

        Args:
            data: inputs of the network.
            memory: bytes that the outputs of the frozen prefix may take.

        Returns:
            A predictor of the part behind the frozen prefix, and for each batch what that part receives, with the
            batch's target. Its outputs are those of the network, whatever the values of the adaptive parameters. None
            if the network has no frozen prefix, there is no batch, a batch has keyword inputs, `memory` does not
            suffice, or the output function looks at the inputs.
        """
        if takes_inputs(self.output):
            return None
        prefix: nn.Module | None = None
        rest, kept, used = self.net, [], 0
        for batch in self.batches(data):
            if batch.kwargs or batch.axis:
                return None
            if prefix is None:
                # A network that draws random numbers is never split, but draws some before that is known.
                with fork_rng(None):
                    prefix, rest = split_network(self.net, batch.part(0, 2).args)
            if prefix is None:
                return None
            with torch.no_grad(), autocast(self.precision, batch.device):
                outputs = prefix(*batch.cloned().args)
            used += sum(x.nbytes for x in outputs)
            if used > memory:
                return None
            kept.append(Batch(outputs, {}, batch.target))
        return (self.of(rest), kept) if kept else None


def check_not_inference() -> None:
    """Raise within torch.inference_mode, which rules out gradients.

    Raises:
        UserError: it is enabled.
    """
    if torch.is_inference_mode_enabled():
        raise UserError("This needs gradients, which torch.inference_mode rules out: call it outside of that.")


def unwrapped(net: nn.Module) -> nn.Module:
    """Return the network inside a DataParallel or DistributedDataParallel; any other network as it is.

    Raises:
        UserError: it is no module.
    """
    check_module(net)
    if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner: nn.Module = net.module
        return inner
    return net


def _functional(net: nn.Module, parameters: dict[str, Tensor], *args: object, **kwargs: object) -> object:
    return functional_call(net, parameters, args, kwargs)
