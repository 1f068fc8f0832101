"""The generated sweep, as data: kinds of ops, each in several sizes, from those that nobody notices to those that
fill the device. Adding an op is adding a line to a table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from herald.experiments.calibration.operations import Operation

_F32, _BF16 = torch.float32, torch.bfloat16
_aten = torch.ops.aten

Call = Callable[[], object]
Builder = Callable[..., Call]  # (device, *size) -> the call


@dataclass(frozen=True)
class Kind:
    """A kind of op and the sizes in which it is calibrated."""

    name: str
    build: Builder
    cuda: Sequence[tuple[Any, ...]]
    cpu: Sequence[tuple[Any, ...]] = ()

    def sizes(self, device_type: str) -> Sequence[tuple[Any, ...]]:
        """The sizes for a type of device."""
        return self.cuda if device_type == "cuda" else self.cpu


def operations(device: torch.device) -> Mapping[str, Callable[[], Operation]]:
    """Every op of the sweep by its label; calling it allocates the tensors."""

    def builder(kind: Kind, size: tuple[Any, ...], label: str) -> Callable[[], Operation]:
        return lambda: Operation(label, kind.build(device, *size))

    return {
        label: builder(kind, size, label)
        for kind in KINDS
        for size in kind.sizes(device.type)
        for label in [f"sweep/{kind.name}-{'x'.join(map(str, size))}"]
    }


# Builders -------------------------------------------------------------------------------------------------------------


def _random(device: torch.device, *shape: int, dtype: torch.dtype = _F32) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype)


def _mm(dtype: torch.dtype) -> Builder:
    def build(device: torch.device, m: int, n: int, k: int) -> Call:
        a, b = _random(device, m, k, dtype=dtype), _random(device, k, n, dtype=dtype)
        return lambda: torch.mm(a, b)

    return build


def _addmm(device: torch.device, m: int, n: int, k: int) -> Call:
    bias, a, b = _random(device, n), _random(device, m, k), _random(device, k, n)
    return lambda: torch.addmm(bias, a, b)


def _bmm(device: torch.device, batch: int, m: int, n: int, k: int) -> Call:
    a, b = _random(device, batch, m, k, dtype=_BF16), _random(device, batch, k, n, dtype=_BF16)
    return lambda: torch.bmm(a, b)


def _conv(dtype: torch.dtype, *, groups: bool = False) -> Builder:
    def build(device: torch.device, *size: int) -> Call:
        batch, inner, outer, side, window = size
        images = _random(device, batch, inner, side, side, dtype=dtype)
        weights = _random(device, outer, 1 if groups else inner, window, window, dtype=dtype)
        return lambda: F.conv2d(images, weights, padding=window // 2, groups=inner if groups else 1)

    return build


def _conv_backward(device: torch.device, batch: int, inner: int, outer: int, side: int) -> Call:
    images, weights = _random(device, batch, inner, side, side), _random(device, outer, inner, 3, 3)
    grads = _random(device, batch, outer, side, side)
    where = ([0], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
    return lambda: _aten.convolution_backward(grads, images, weights, *where)


def _elementwise(function: Callable[[Tensor], object]) -> Builder:
    def build(device: torch.device, *shape: int) -> Call:
        values = _random(device, *shape)
        return lambda: function(values)

    return build


def _layer_norm(dtype: torch.dtype) -> Builder:
    def build(device: torch.device, rows: int, width: int) -> Call:
        values, weight, bias = (_random(device, *shape, dtype=dtype) for shape in ((rows, width), (width,), (width,)))
        return lambda: F.layer_norm(values, (width,), weight, bias)

    return build


def _layer_norm_backward(device: torch.device, rows: int, width: int) -> Call:
    values, grads, weight, bias = (_random(device, *s) for s in ((rows, width), (rows, width), (width,), (width,)))
    _, mean, rstd = _aten.native_layer_norm(values, [width], weight, bias, 1e-5)
    return lambda: _aten.native_layer_norm_backward(
        grads, values, [width], mean, rstd, weight, bias, [True, True, True]
    )


def _batch_norm(device: torch.device, batch: int, channels: int, side: int) -> Call:
    images, weight, bias = _random(device, batch, channels, side, side), *(_random(device, channels) for _ in range(2))
    mean, variance = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    return lambda: F.batch_norm(images, mean, variance, weight, bias, training=True)


def _embedding(device: torch.device, rows: int, width: int, count: int) -> Call:
    table, indices = _random(device, rows, width), torch.randint(rows, (count,), device=device)
    return lambda: F.embedding(indices, table)


def _embedding_bag(device: torch.device, rows: int, width: int, bags: int, per_bag: int) -> Call:
    table, indices = _random(device, rows, width), torch.randint(rows, (bags, per_bag), device=device)
    return lambda: F.embedding_bag(indices, table, mode="sum")


def _index_add(device: torch.device, rows: int, width: int, count: int) -> Call:
    table, indices = _random(device, rows, width), torch.randint(rows, (count,), device=device)
    values = _random(device, count, width)
    return lambda: table.index_add_(0, indices, values)


def _attention(device: torch.device, batch: int, heads: int, length: int, width: int) -> Call:
    q, k, v = (_random(device, batch, heads, length, width, dtype=_BF16) for _ in range(3))
    return lambda: F.scaled_dot_product_attention(q, k, v)


def _foreach(device: torch.device, tensors: int, numel: int) -> Call:
    values, moments = ([_random(device, numel) for _ in range(tensors)] for _ in range(2))
    return lambda: torch._foreach_add_(values, moments, alpha=-1e-6)


def _adam(device: torch.device, tensors: int, numel: int) -> Call:
    parameters, grads, first = ([_random(device, numel) for _ in range(tensors)] for _ in range(3))
    second = [torch.ones(numel, device=device) for _ in range(tensors)]
    steps = [torch.ones((), device=device) for _ in range(tensors)]
    return lambda: torch._fused_adamw_(
        parameters,
        grads,
        first,
        second,
        [],
        steps,
        lr=1e-6,
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.01,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )


def _lstm_cell(device: torch.device, batch: int, width: int) -> Call:
    values, hidden, cell = (_random(device, batch, width) for _ in range(3))
    weights = [_random(device, 4 * width, width) for _ in range(2)]
    biases = [_random(device, 4 * width) for _ in range(2)]
    return lambda: torch.lstm_cell(values, (hidden, cell), *weights, *biases)


def _add(values: Tensor) -> Tensor:
    return values + values


def _copy_transposed(values: Tensor) -> Tensor:
    return values.t().contiguous()


def _concatenate(values: Tensor) -> Tensor:
    return torch.cat((values, values))


# The sweep ------------------------------------------------------------------------------------------------------------

KINDS: Sequence[Kind] = (
    Kind("mm", _mm(_F32), [(n, n, n) for n in (64, 256, 1024, 2048, 4096)], [(16, 16, 16), (64, 64, 64)]),
    Kind("mm-bf16", _mm(_BF16), [*((n, n, n) for n in (256, 1024, 2048, 4096, 8192)), (64, 64, 16384)]),
    Kind("addmm", _addmm, [(20, 6000, 1500), (32, 1024, 1024), (32, 4096, 25088), (8192, 2048, 512)], [(4, 32, 16)]),
    Kind("bmm-bf16", _bmm, [(256, 256, 256, 64), (128, 512, 64, 512)]),
    Kind(
        "conv",
        _conv(_F32),
        [(32, 64, 64, 56, 3), (32, 3, 64, 224, 3), (32, 512, 512, 14, 3), (4, 256, 256, 14, 3), (64, 256, 64, 56, 1)],
        [(2, 3, 4, 8, 3)],
    ),
    Kind("conv-bf16", _conv(_BF16), [(32, 128, 128, 28, 3), (32, 256, 256, 56, 3)]),
    Kind("conv-depthwise", _conv(_F32, groups=True), [(16, 96, 96, 56, 7), (16, 384, 384, 14, 7)]),
    Kind("conv-backward", _conv_backward, [(32, 64, 64, 56), (32, 512, 512, 14), (8, 128, 128, 28)]),
    Kind(
        "add", _elementwise(_add), [(1 << 12,), (1 << 16,), (1 << 18,), (1 << 20,), (1 << 22,), (1 << 24,), (1 << 27,)]
    ),
    Kind("relu", _elementwise(torch.relu), [(1 << 18,), (1 << 22,), (1 << 25,)], [(1 << 8,)]),
    Kind("gelu", _elementwise(F.gelu), [(1 << 16,), (1 << 23,)]),
    Kind("softmax", _elementwise(lambda x: x.softmax(-1)), [(256, 256), (4096, 1024), (98304, 256)], [(8, 16)]),
    Kind("log-softmax", _elementwise(lambda x: x.log_softmax(-1)), [(700, 10000), (128, 1000)]),
    Kind("layer-norm", _layer_norm(_F32), [(512, 512), (8192, 512), (16384, 1024)], [(8, 16)]),
    Kind("layer-norm-bf16", _layer_norm(_BF16), [(32, 1024), (32768, 2048)]),
    Kind("layer-norm-backward", _layer_norm_backward, [(512, 512), (16384, 1024)]),
    Kind("batch-norm", _batch_norm, [(32, 64, 112), (32, 256, 14)], [(2, 4, 6)]),
    Kind("embedding", _embedding, [(1 << 17, 64, 1 << 11), (1 << 20, 64, 1 << 17), (1 << 20, 128, 1 << 20)]),
    Kind("embedding-bag", _embedding_bag, [(1 << 20, 64, 2048, 32), (1 << 17, 64, 256, 1)]),
    Kind("index-add", _index_add, [(1 << 12, 64, 1 << 11), (1 << 20, 64, 1 << 18)]),
    Kind("sum", _elementwise(torch.sum), [(1 << 16,), (1 << 20,), (1 << 26,)]),
    Kind("sum-rows", _elementwise(lambda x: x.sum(0)), [(512, 512), (8192, 8192)]),
    Kind("dropout", _elementwise(lambda x: F.dropout(x, 0.1)), [(1 << 16,), (1 << 24,)]),
    Kind("copy", _elementwise(torch.clone), [(1 << 20,), (1 << 26,)]),
    Kind("transpose", _elementwise(_copy_transposed), [(1024, 1024), (8192, 8192)]),
    Kind("cat", _elementwise(_concatenate), [(1 << 14,), (1 << 23,)]),
    Kind("attention-bf16", _attention, [(8, 8, 128, 64), (32, 8, 256, 64), (16, 16, 1024, 64)]),
    Kind("foreach-add", _foreach, [(20, 1 << 14), (8, 1 << 22)]),
    Kind("adamw", _adam, [(20, 1 << 14), (8, 1 << 22)]),
    Kind("cumsum", _elementwise(lambda x: x.cumsum(-1)), [(1 << 16,), (1 << 24,), (4, 1 << 18)]),
    Kind("sort", _elementwise(lambda x: x.sort(-1)), [(1 << 14,), (1 << 22,), (1024, 256)]),
    Kind("topk", _elementwise(lambda x: x.topk(8, -1)), [(32, 50257), (4096, 64)]),
    Kind("max-pool", _elementwise(lambda x: F.max_pool2d(x, 2)), [(32, 64, 112, 112), (32, 512, 14, 14)]),
    Kind("lstm-cell", _lstm_cell, [(20, 1500), (64, 256)], [(2, 8)]),
)
