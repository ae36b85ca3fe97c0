"""Training what does not fit on one device: each process keeps a share of weights, averages and optimisers' states.

PyTorch's FSDP2 does the work: before a block is used its weights are gathered, and then let go of. What is saved is
whole, as one process would have it, so a run goes on with more processes, with fewer, or with a copy in each.
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate

from lib.place import Place


def share(root: nn.Module, place: Place) -> nn.Module:
    """Divide a module's weights among all processes, by what it repeats and then the rest; it moves to the device."""
    mesh = torch.distributed.init_device_mesh(place.device.type, (place.world,))
    for layers in [part for part in root.modules() if isinstance(part, nn.ModuleList)]:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    return fully_shard(root, mesh=mesh)


def whole(value, keep: bool = True):
    """Of tensors, in whatever dicts and lists, the whole ones in memory. All processes take part; some may not keep."""
    if isinstance(value, dict):
        return {name: whole(part, keep) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(part, keep) for part in value)
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if keep else None
    return value.detach().cpu() if torch.is_tensor(value) else value


def load(model: nn.Module, state: dict) -> None:
    """Fill a model, shared or not, with whole weights."""
    own = model.state_dict()
    shares = {n: like(v, own[n]) if isinstance(own.get(n), DTensor) else v for n, v in state.items()}
    model.load_state_dict(shares)


def alone(stepper: nn.Module):
    """A piece of a batch whose gradients stay here until the last piece's come."""
    if hasattr(stepper, "no_sync"):
        return stepper.no_sync()
    return waiting(stepper)


@contextlib.contextmanager
def waiting(stepper: nn.Module) -> Iterator[None]:
    stepper.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        stepper.set_requires_gradient_sync(True)


def spread(state: dict, optimiser: torch.optim.Optimizer) -> dict:
    """An optimiser's whole state as this process's share: what belongs to a weight is divided as the weight is."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    shared = {}
    for number, values in state["state"].items():
        weight = weights[number]
        divides = isinstance(weight, DTensor)
        shared[number] = {
            name: like(value, weight) if divides and torch.is_tensor(value) and value.shape == weight.shape else value
            for name, value in values.items()
        }
    return state | {"state": shared}


def like(value: torch.Tensor, weight: DTensor) -> DTensor:
    """A whole tensor that every process has, divided as a weight is. Nothing is sent."""
    replicated = DTensor.from_local(value.to(weight.device), weight.device_mesh, [Replicate()], run_check=False)
    return replicated.redistribute(placements=weight.placements)


def local(tensors) -> list[torch.Tensor]:
    """This process's shares, to be changed in place: what is done number by number needs no other process."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def gathered(tensors) -> list[torch.Tensor]:
    """The whole ones, where they are: one share after another is sent around."""
    return [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def divided(tensors, weights) -> list[torch.Tensor]:
    """This process's shares of whole tensors, each as its weight is divided."""
    pairs = zip(tensors, weights, strict=True)
    return [like(value, weight).to_local() if isinstance(weight, DTensor) else value for value, weight in pairs]


def filled(template: nn.Module, state: dict, device: torch.device) -> nn.Module:
    """A whole model of the weights in a state."""
    model = copy.deepcopy(template)
    model.load_state_dict(state)
    return model.to(device).eval().requires_grad_(False)
