"""Floating-point operations of an op call, by torch's own formulas and two that it lacks."""

import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

# Ops that compute what another does, and take the same arguments as far as its formula looks.
_SAME_AS = {
    "_addmm_activation": "addmm",
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "_scaled_dot_product_flash_attention_backward",
}


def flops(name: str, args: str | None) -> int | None:
    """FLOPs of one call; None where there is no formula, or the formula cannot tell.

    ``args``: a `SignatureInfo`'s. A multiplication and the addition that follows it are two.
    """
    formula = _formula(name)
    if formula is None or args is None:
        return None
    called = json.loads(args)
    inputs, outputs = ([_value(value) for value in called[side]] for side in ("in", "out"))
    num_positional = _num_positional(name, len(inputs))
    try:
        return int(formula(*inputs[:num_positional], out_val=outputs[0] if len(outputs) == 1 else tuple(outputs)))
    except Exception:  # a formula asserts what it assumes, and torch's ops change their arguments
        return None


def _formula(name: str) -> Callable[..., Any] | None:
    namespace, _, op = name.partition("::")
    if namespace != "aten":
        return None
    if op in _OWN:
        return _OWN[op]
    formula: Callable[..., Any] | None = flop_registry.get(getattr(torch.ops.aten, _SAME_AS.get(op, op), None))
    return formula


@cache
def _num_positional(name: str, num_inputs: int) -> int:
    """How many of an op's arguments are not keywords (`beta` and `alpha` of addmm are), by its schemas."""
    for schema in torch._C._jit_get_schemas_for_operator(name):
        if len(schema.arguments) == num_inputs:
            return sum(not argument.kwarg_only for argument in schema.arguments)
    return num_inputs


def _value(value: object) -> object:
    """A tensor of the recorded shape without memory, where the value stands for one."""
    if isinstance(value, dict):
        return torch.empty(value["shape"], device="meta")
    return [_value(item) for item in value] if isinstance(value, list) else value


def _convolution(inputs: torch.Tensor, weight: torch.Tensor, *_: object, out_val: torch.Tensor) -> int:
    # torch's formula takes cudnn_convolution's `benchmark` for convolution's `transposed`
    del inputs
    return 2 * out_val.numel() * math.prod(weight.shape[1:])


def _rnn(inputs: torch.Tensor, weights: list[torch.Tensor], *_: object, out_val: object) -> int:
    # every matrix is applied to every token once
    del out_val
    tokens = inputs.numel() // inputs.shape[-1]
    return 2 * tokens * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _rnn_backward(inputs: torch.Tensor, weights: list[torch.Tensor], *_: object, out_val: object) -> int:
    return 2 * _rnn(inputs, weights, out_val=out_val)


_OWN: dict[str, Callable[..., Any]] = {
    "cudnn_convolution": _convolution,
    "cudnn_convolution_relu": _convolution,
    "cudnn_convolution_add_relu": _convolution,
    "mkldnn_convolution": _convolution,
    "_cudnn_rnn": _rnn,
    "_cudnn_rnn_backward": _rnn_backward,
}
