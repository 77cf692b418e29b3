"""A network in two parts: what does not depend on its adaptive activations, and the rest.

The first part gives the same for an image however the activations are tuned, so it needs to be computed only once.
"""

import logging
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function

from aafit.activations import AdaptiveActivation

log = logging.getLogger(__name__)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # What consists of nothing else is taken as it is: its program may look at its input, as our own SiLU's does.
        childless = next(m.children(), None) is None
        return childless or isinstance(m, AdaptiveActivation) or super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> Any:
        """A call in the graph. One of a method, x.relu(), passes what watches the calls of functions, as it does in a
        forward: it may stand for a call of a module."""
        make = super().create_proxy
        if kind != "call_method" or not torch._C._is_torch_function_mode_enabled():
            return make(kind, target, args, kwargs, *more, **options)

        @wraps(getattr(Tensor, target), updated=())
        def method(*args: Any, **kwargs: Any) -> Any:
            return make(kind, target, args, kwargs, *more, **options)

        return handle_torch_function(method, args[:1], *args, **kwargs)


def split_network(net: nn.Module, sample: tuple[Tensor, ...]) -> tuple[nn.Module | None, nn.Module]:
    """The frozen prefix of `net` and the rest: rest(*prefix(*inputs)) is net(*inputs), in the mode that `net` is in.

    Both share the modules and parameters of `net`. The prefix gives a tuple of tensors with an image in each row. It is
    None, and the rest is `net` itself, where nothing can be computed beforehand: where the program of the network
    cannot be followed (torch.fx), or something other than rows of images goes from one part to the other.

    Args:
        net: a network with adaptive activations.
        sample: a few inputs of it, to try the two parts on.
    """
    try:
        graph = _Tracer().trace(net)
        parts = _parts(net, graph)
        if parts is None:
            return None, net
        with torch.no_grad():
            between = parts[0](*(x.clone() for x in sample))
            before = [value.clone() for value in between]
            whole, again = net(*(x.clone() for x in sample)), parts[1](*between)
        rows = all(value.ndim and len(value) == len(sample[0]) for value in between)
        # The rest may work in place on what it receives, which is to be used again.
        same = torch.equal(whole, again) and all(map(torch.equal, before, between))
    # A network's own program may fail in any way when it is followed; it still runs as a whole.
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
    of_images: set[fx.Node] = set()
    for node in frozen:
        if node.op == "placeholder" or any(source in of_images for source in node.all_input_nodes):
            of_images.add(node)
    # What no image takes part in has no rows: each part computes it for itself.
    between = [node for node in frozen if node in of_images and any(user in depends for user in node.users)]
    if not any(node.op == "call_module" or node.op == "call_function" for node in frozen) or not between:
        return None
    first, second = fx.Graph(), fx.Graph()
    of_first: dict[fx.Node, fx.Node] = {}
    for node in frozen:
        of_first[node] = first.node_copy(node, of_first.__getitem__)
    first.output(tuple(of_first[node] for node in between))
    of_second: dict[fx.Node, fx.Node] = {node: second.placeholder(node.name) for node in between}
    for node in graph.nodes:
        if node in depends or node.op == "output" or (node in frozen and node not in of_images):
            of_second[node] = second.node_copy(node, of_second.__getitem__)
    return _module(net, first), _module(net, second)


def _module(net: nn.Module, graph: fx.Graph) -> nn.Module:
    module: nn.Module = fx.GraphModule(net, graph)
    return module.train(net.training)
