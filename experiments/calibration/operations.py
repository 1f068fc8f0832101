"""An operation that can be repeated, and what it costs: the unit of the calibration, from a sweep or from a model."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

# As c10::toString names dtypes, which signatures are made of.
_DTYPES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.bool: "Bool",
}
_NO_WORK = ("empty", "new_empty", "detach", "_unsafe_view", "_reshape_alias", "unsafe_split", "resize", "set_")


@dataclass(frozen=True)
class Operation:
    """One call, again and again with the same arguments."""

    label: str  # unique: "sweep/mm-bf16-2048" or "vgg16/aten::relu_(Float[32, 64, 224, 224])"
    call: Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """What one call does, from shapes alone."""

    signatures: tuple[str, ...]  # of the leaf ops, in order
    numel: int  # of all tensor inputs
    bytes_in: int
    bytes_out: int
    flops: int  # by torch's own formulas


class LeafOps(TorchDispatchMode, ABC):  # type: ignore[no-untyped-call]  # torch
    """Sees each op that is not made of others. `leaf` runs it, or lets it be run, and returns its output."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch

    @abstractmethod
    def leaf(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the op."""

    @override
    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        # Without it, a mode sees `aten::linear` where autograd is off, and its parts where it is on.
        with self:
            output = func.decompose(*args, **kwargs)
        return self.leaf(func, args, kwargs) if output is NotImplemented else output


class _Costs(LeafOps):  # type: ignore[no-untyped-call]  # torch
    """Adds up leaf ops. Views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Cost] = []

    @override
    def leaf(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        output = func(*args, **kwargs)
        if moves_data(func):
            self.found.append(of_call(func, args, kwargs, output))
        return output


def cost(call: Callable[[], object]) -> Cost:
    """Run it once and add up the leaf ops that it is made of."""
    with _Costs() as costs:
        call()
    return Cost(
        tuple(signature for each in costs.found for signature in each.signatures),
        sum(each.numel for each in costs.found),
        sum(each.bytes_in for each in costs.found),
        sum(each.bytes_out for each in costs.found),
        sum(each.flops for each in costs.found),
    )


def of_call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: object) -> Cost:
    """The cost of one call of a leaf op."""
    inputs = list(_tensors((args, kwargs)))
    outputs = [tensor for tensor in _tensors(output) if not any(tensor is given for given in inputs)]
    outputs += [tensor for tensor in _written(func, args, kwargs) if tensor is not None]
    formula = flop_registry.get(func.overloadpacket)
    return Cost(
        (signature(func, args),),
        sum(tensor.numel() for tensor in inputs),
        sum(map(_bytes, _distinct(inputs))),
        sum(map(_bytes, _distinct(outputs))),
        int(formula(*args, **kwargs, out_val=output)) if formula else 0,
    )


def signature(func: Any, args: Sequence[Any]) -> str:
    """The readable signature, as hooks/csrc/signature.hpp `describe` makes it."""
    return f"{func.namespace}::{func.overloadpacket.__name__}({', '.join(_operands(args))})"


def moves_data(func: Any) -> bool:
    """Whether an op may have device time: neither a view nor an allocation nor a mark of the profiler's."""
    views = func.is_view or func.overloadpacket.__name__.startswith(_NO_WORK)
    return not views and func.namespace != "profiler"


def _operands(args: Sequence[Any]) -> Iterator[str]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield _operand(arg)
        elif isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor):
            yield f"{_operand(arg[0])} x{len(arg)}"


def _operand(tensor: Tensor) -> str:
    sizes = ", ".join(map(str, tensor.shape))
    channels_last = tensor.dim() >= 4 and tensor.stride(1) == 1
    return f"{_DTYPES.get(tensor.dtype, str(tensor.dtype))}[{sizes}{'; channels_last' if channels_last else ''}]"


def _tensors(tree: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _distinct(tensors: Sequence[Tensor]) -> Iterable[Tensor]:
    """Each tensor once: `x + x` reads x once."""
    return {id(tensor): tensor for tensor in tensors}.values()


def _bytes(tensor: Tensor) -> int:
    if not tensor.is_sparse:
        return tensor.nbytes
    row_bytes = tensor.element_size() * math.prod(tensor.shape[tensor.sparse_dim() :])
    return tensor._nnz() * (row_bytes + 8 * tensor.sparse_dim())  # a 64-bit index per sparse dimension


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that the schema says are written in place."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[place] if place < len(args) else kwargs.get(argument.name))
