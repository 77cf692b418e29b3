"""Run a network on batches of any form: the one place where the library calls networks.

`Predictor` never modifies its inputs, gives random networks the same random numbers for every batch, applies autocast,
selects the output, and returns it in float32 or float64. It leaves the mode, training or evaluation, to its caller.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aafit.errors import UserError, check_name, short_message
from aafit.networks.batches import Batch, call
from aafit.networks.frozen_prefix import split_network
from aafit.networks.running import check_module, fork_rng, without_fast_path
from aafit.training.precision import PRECISIONS, autocast

NO_GRADIENT = (
    "The loss has no gradient with respect to any adaptive parameter: the forward pass does not use them, or detaches "
    "what depends on them (detach, torch.no_grad, re-entrant checkpointing)."
)

Output = Callable[..., Tensor]
"""A function from what a network returns to the output tensor, as `lambda out: out.last_hidden_state`. If it takes two
arguments, the second is the `Batch` of inputs: what it leaves out, as padding by the attention mask, does not count."""

SEED = 0
"""Seed of the random numbers of every batch: two networks that draw some draw the same ones for the same batch."""


class Predictor:
    """Computes the outputs of a network.

    Args:
        net: any network; it runs in the mode that it is in.
        output: function that selects the output tensor from what the network returns, see `run`.
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
            UserError: as `run`.
        """

        def substituted(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.net, parameters or {}, args, kwargs)

        with self._forward(batch, seed) as inputs:
            outputs = run(substituted if parameters else self.net, inputs, self.output)
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


# --- outputs ---------------------------------------------------------------------------------------------------------


def run(net: Callable[..., Any], batch: Batch, output: Output | None = None) -> Tensor:
    """Call `net` with the inputs of `batch`, and return its output tensor.

    The function `output` selects it; by default it is the tensor itself, the field or key "logits", or the only element
    of a tuple.

    Raises:
        UserError: the network or `output` fails (with its error as the cause); `output` returns no tensor; no `output`
            is given and the tensor cannot be determined; the tensor has no axis for the samples.
    """
    returned = call(net, batch)
    tensor = _default_output(returned) if output is None else _selected_output(output, returned, batch)
    if tensor.dim() == 0:
        of = "The function given as output" if output is not None else "The network"
        raise UserError(f"{of} gives one number for a whole batch: let output= give one or more for each sample.")
    return tensor


def takes_inputs(output: Output | None) -> bool:
    """Return whether an output function takes the batch too: whether it has two arguments without defaults."""
    try:
        parameters = () if output is None else signature(output).parameters.values()
    except (TypeError, ValueError):  # Python does not know the parameters of some builtin functions.
        return False
    places = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in places and one.default is Parameter.empty for one in parameters) == 2


def _selected_output(output: Output, returned: Any, batch: Batch) -> Tensor:
    try:
        tensor = output(returned, batch) if takes_inputs(output) else output(returned)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"The function given as output failed ({short_message(error)}) on what the network returns: "
            f"{_form(returned)}."
        ) from error
    if not isinstance(tensor, Tensor):
        raise UserError(
            f"The function given as output returned a {type(tensor).__name__}, not a tensor: the network returns "
            f"{_form(returned)}."
        )
    return tensor


def _default_output(returned: Any) -> Tensor:
    if isinstance(returned, Tensor):
        return returned
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(returned, (tuple, list)) and len(returned) == 1 and isinstance(returned[0], Tensor):
        tensor: Tensor = returned[0]
        return tensor
    raise UserError(
        f"The network returns {_form(returned)}: say which tensor is meant, as output={_proposal(returned)}."
    )


def _form(returned: Any) -> str:
    """Describe what a network returned: its type, and what it holds."""
    name, names = type(returned).__name__, _names(returned)
    if names:
        return f"a {name} with {', '.join(names)}"
    return f"a {name} of {len(returned)} elements" if isinstance(returned, (tuple, list)) else f"a {name}"


def _names(returned: Any) -> list[str]:
    if isinstance(returned, Mapping):
        return [str(key) for key in returned]
    if is_dataclass(returned):
        return [field.name for field in fields(returned)]
    return list(getattr(returned, "_fields", ()))


def _proposal(returned: Any) -> str:
    names = _names(returned)
    if not names:
        return "lambda out: out[0]" if isinstance(returned, (tuple, list)) else "lambda out: ..., which returns it"
    name = "last_hidden_state" if "last_hidden_state" in names else names[0]
    # A mapping whose keys are attributes too, as the data classes of transformers, reads better so.
    return f"lambda out: out.{name}" if hasattr(returned, name) else f"lambda out: out[{name!r}]"
