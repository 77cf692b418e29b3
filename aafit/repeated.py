"""Evaluate a network again and again while its activations are tuned: what is frozen below them is computed once."""

from collections.abc import Callable

from torch import nn

from aafit.batches import evaluation_batches
from aafit.data import Split
from aafit.evaluate import Evaluation, evaluate, evaluation_mode
from aafit.identification.prefix import split_network
from aafit.precision import autocast, data_type
from aafit.trainable import adaptive_parameters

KEPT_BYTES = 1 << 29  # of a split's images behind the frozen prefix


def repeated_evaluation(net: nn.Module, split: Split, precision: str = "float32") -> Callable[[], Evaluation]:
    """A function that evaluates `net` as it then is on `split`, with the same bits as `evaluate` gives.

    Where only adaptive activations are trained, the outputs of what lies below the lowest of them are kept, if there
    is one such output and it takes less than half a GiB: so for activations of the fully connected layers.
    """
    dtype = data_type(precision)

    def plainly() -> Evaluation:
        return evaluate(net, evaluation_batches(split, dtype=dtype), precision)

    adaptive = set(adaptive_parameters(net).values())
    if not adaptive or any(parameter.requires_grad for parameter in net.parameters() if parameter not in adaptive):
        return plainly
    with evaluation_mode(net):
        x_BCHW, _ = next(evaluation_batches(split, batch_size=2, dtype=dtype))
        prefix, rest = split_network(net, (x_BCHW,))
        if prefix is None:
            return plainly
        with autocast(precision, x_BCHW.device):
            outputs = prefix(x_BCHW)
            if len(outputs) > 1 or outputs[0].nbytes * len(split) > KEPT_BYTES * len(x_BCHW):
                return plainly
            kept = [(prefix(x_BCHW)[0], y_B) for x_BCHW, y_B in evaluation_batches(split, dtype=dtype)]
    return lambda: evaluate(rest, kept, precision)
