"""Split a network into the part before its adaptive activations and the rest.

The outputs of the first part do not change while the activations are tuned, so they are computed once.
"""

import logging

import torch
from torch import Tensor, fx, nn

from aafit.activations import AdaptiveActivation

log = logging.getLogger(__name__)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A module without children is not traced: its program may depend on its input, as our own SiLU's does.
        childless = next(m.children(), None) is None
        return childless or isinstance(m, AdaptiveActivation) or super().is_leaf_module(m, module_qualified_name)


def split_network(net: nn.Module, sample: tuple[Tensor, ...]) -> tuple[nn.Module | None, nn.Module]:
    """Return the frozen prefix of `net` and the rest: rest(*prefix(*inputs)) is net(*inputs).

    Both share the modules and parameters of `net`, and its training mode. The prefix returns a tuple of tensors with a
    row for each sample. It is None, and the rest is `net` itself, if nothing can be computed beforehand: if torch.fx
    cannot trace the network, or other values than rows of samples pass from one part to the other.

    Args:
        net: a network with adaptive activations.
        sample: positional inputs of `net`, on which the two parts are checked.
    """
    try:
        graph = _Tracer().trace(net)
        parts = _parts(net, graph)
        if parts is None:
            return None, net
        with torch.no_grad():
            between = parts[0](*(x.clone() for x in sample))
            before = [value.clone() for value in between]
            full, again = net(*(x.clone() for x in sample)), parts[1](*between)
        rows = all(value.ndim and len(value) == len(sample[0]) for value in between)
        # The rest may work in place on its inputs, which are used again.
        same = torch.equal(full, again) and all(map(torch.equal, before, between))
    # Tracing may fail in any way; the network still runs as a whole.
    except Exception as error:
        log.debug("The network is not split: %s", error)
        return None, net
    return parts if rows and same else (None, net)


def _parts(net: nn.Module, graph: fx.Graph) -> tuple[nn.Module, nn.Module] | None:
    modules = dict(net.named_modules())
    depends: set[fx.Node] = set()
    for node in graph.nodes:
        adaptive = node.op == "call_module" and isinstance(modules[str(node.target)], AdaptiveActivation)
        if adaptive or any(source in depends for source in node.all_input_nodes):
            depends.add(node)
    frozen = [node for node in graph.nodes if node not in depends and node.op != "output"]
    with_rows: set[fx.Node] = set()
    for node in frozen:
        if node.op == "placeholder" or any(source in with_rows for source in node.all_input_nodes):
            with_rows.add(node)
    # Values that do not depend on an input have no rows of samples, so each part computes them itself.
    between = [node for node in frozen if node in with_rows and any(user in depends for user in node.users)]
    if not any(node.op == "call_module" or node.op == "call_function" for node in frozen) or not between:
        return None
    first, second = fx.Graph(), fx.Graph()
    of_first: dict[fx.Node, fx.Node] = {}
    for node in frozen:
        of_first[node] = first.node_copy(node, of_first.__getitem__)
    first.output(tuple(of_first[node] for node in between))
    of_second: dict[fx.Node, fx.Node] = {node: second.placeholder(node.name) for node in between}
    for node in graph.nodes:
        if node in depends or node.op == "output" or (node in frozen and node not in with_rows):
            of_second[node] = second.node_copy(node, of_second.__getitem__)
    return _module(net, first), _module(net, second)


def _module(net: nn.Module, graph: fx.Graph) -> nn.Module:
    module: nn.Module = fx.GraphModule(net, graph)
    return module.train(net.training)
