"""Profiles that nothing had to run for: `FakeRun` records made-up ops; `vgg16` and `transformer` imitate real runs.

Ships with Herald, for its own tests and for users'. The structure is what a hook sees on a GPU (wrappers around the op
that works, views, autograd nodes in reverse order, an optimizer over lists of tensors); times are plausible, no more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from herald.profiles import Iteration, OpInstance, OpKind, OpProfile, Phase, Profile

GAP_NS = 2_000  # host time between two ops


class FakeRun:
    """Records ops one after the other; `profile` is what a profiler would have made of them."""

    def __init__(self, *, host_ns: int = 8_000) -> None:
        self.phase: Phase = "forward"
        self.module = ""
        self._default_host_ns = host_ns
        self._now_ns = 0
        self._ops: dict[str, int] = {}
        self._profiles: list[OpProfile] = []
        self._instances: list[OpInstance] = []
        self._storages = count()

    def tensor(self) -> int:
        """A storage that nobody has written."""
        return next(self._storages)

    def op(
        self,
        name: str,
        self_ns: int = 0,
        reads: Sequence[int] = (),
        writes: Sequence[int] | None = None,
        *,
        kind: OpKind | None = None,
        host_ns: int | None = None,
        wrappers: Iterable[str] = (),
        flops: int = 0,
    ) -> int:
        """Record an op, within ``wrappers`` (outermost first); returns the last storage it writes: else a new one."""
        outputs = (self.tensor(),) if writes is None else tuple(writes)
        names = [*wrappers, name]
        host_ns = self._default_host_ns if host_ns is None else host_ns
        for depth, each in enumerate(names):
            innermost = each is names[-1]
            outer = len(names) - 1 - depth
            self._instances.append(
                OpInstance(
                    op=self._op(each, self_ns if innermost else 0, kind if innermost else "none", flops * innermost),
                    phase=self.phase,
                    module=self.module,
                    begin_ns=self._now_ns + 500 * depth,
                    host_ns=host_ns + 1_000 * outer,
                    self_ns=self_ns if innermost else 0,
                    reads=tuple(reads),
                    writes=outputs,
                )
            )
        self._now_ns += host_ns + 1_000 * (len(names) - 1) + GAP_NS
        return outputs[-1] if outputs else -1

    def wait(self, until_ns: int) -> None:
        """The host does something else until then."""
        self._now_ns = max(self._now_ns, until_ns)

    def profile(self, workload: str = "fake", device: str = "NVIDIA H200") -> Profile:
        """What was recorded."""
        device_ns = sum(instance.self_ns for instance in self._instances)
        last = self._instances[-1] if self._instances else None
        host_ns = last.begin_ns + last.host_ns if last else 0
        iteration = Iteration(max(device_ns, host_ns), device_ns, host_ns, tuple(self._instances))
        return Profile(device, "580.0", "2.11.0", tuple(self._profiles), workload=workload, iteration=iteration)

    def _op(self, name: str, self_ns: int, kind: OpKind | None, flops: int) -> int:
        if kind is None:
            kind = "none" if self_ns < 2_500 else "light" if self_ns < 20_000 else "heavy"
        signature = f"{name}({self_ns})"
        if signature not in self._ops:
            number = self._ops[signature] = len(self._profiles)
            self._profiles.append(OpProfile(signature, number + 1, self_ns, 1024, 1.0, flops=flops, kind=kind))
        return self._ops[signature]


def vgg16(host_ns: int = 8_000) -> Profile:
    """One step of training VGG16, batch 32, on a large GPU: about 300 instances."""
    model = _Vgg(FakeRun(host_ns=host_ns))
    for channels in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if channels:
            model.convolve(channels)
        else:
            model.pool()
    model.flatten()
    for self_ns in (160_000, 35_000, 12_000):
        model.linear(self_ns, is_last=self_ns == 12_000)
    model.backward(model.loss())
    model.step(260_000)
    return model.run.profile("VGG16, 224x224, batch 32, training")


@dataclass(frozen=True)
class _Undo:
    """What the backward pass does for an op."""

    module: str
    name: str
    self_ns: int
    saved: tuple[int, ...]
    has_weights: bool = False


class _Vgg:
    """A sequential model that is run layer by layer, forward and back."""

    def __init__(self, run: FakeRun) -> None:
        self.run = run
        self.hidden = run.tensor()
        self.side = 224
        self.weights: list[int] = []
        self.gradients: list[int] = []
        self._undo: list[_Undo] = []
        self._layers = count()

    def convolve(self, channels: int) -> None:
        """A convolution with bias, and ReLU in place."""
        self_ns = 40_000 + channels * self.side * self.side // 5
        weight, bias = self._next_weights()
        wrappers = ("aten::conv2d", "aten::convolution", "aten::_convolution")
        reads = [self.hidden, weight]
        out = self.run.op("aten::cudnn_convolution", self_ns, reads, wrappers=wrappers, flops=9_000 * self_ns)
        self.run.op("aten::add_", 20_000 + self_ns // 20, [out, bias], [out])
        self._will_undo("convolution", 2 * self_ns, (self.hidden, weight), has_weights=True)
        self._relu(out, 15_000 + self_ns // 20)

    def pool(self) -> None:
        """Halve the side."""
        self._next_layer()
        self_ns = 5_000 + self.side * self.side
        out = self.run.op("aten::max_pool2d_with_indices", self_ns, [self.hidden], wrappers=["aten::max_pool2d"])
        self._will_undo("max_pool2d_with_indices", self_ns * 3 // 2, (self.hidden,))
        self.hidden, self.side = out, self.side // 2

    def flatten(self) -> None:
        """A view."""
        self._next_layer()
        self.run.op("aten::view", 0, [self.hidden], [self.hidden], wrappers=["aten::flatten"])

    def linear(self, self_ns: int, *, is_last: bool) -> None:
        """A linear layer; all but the last with ReLU and dropout."""
        weight, bias = self._next_weights()
        self.run.op("aten::transpose", 0, [weight], [weight], wrappers=["aten::t"])
        reads = [bias, self.hidden, weight]
        out = self.run.op("aten::addmm", self_ns, reads, wrappers=["aten::linear"], flops=2_000 * self_ns)
        self._will_undo("addmm", 2 * self_ns, (self.hidden, weight), has_weights=True)
        self.hidden = out
        if not is_last:
            self._relu(out, 4_000)
            self._next_layer()
            mask = self.run.op("aten::empty_like", 0, [self.hidden])
            self.run.op("aten::bernoulli_", 3_800, [mask], [mask])
            self.hidden = self.run.op("aten::mul", 3_000, [self.hidden, mask])
            self._will_undo("mul", 3_000, (mask,))

    def loss(self) -> int:
        """Cross entropy; returns the gradient of the logits."""
        self.run.module = ""
        likely = self.run.op("aten::_log_softmax", 5_000, [self.hidden], wrappers=["aten::log_softmax"])
        self.run.op("aten::nll_loss_forward", 4_000, [likely], wrappers=["aten::nll_loss"])
        self.run.phase = "backward"
        gradient = self.run.op("aten::nll_loss_backward", 4_000, [likely], wrappers=["NllLossBackward0"])
        return self.run.op("aten::_log_softmax_backward_data", 5_000, [gradient, likely])

    def backward(self, gradient: int) -> None:
        """All layers, the last first."""
        for undo in reversed(self._undo):
            self.run.module = undo.module
            written = [self.run.tensor() for _ in range(3 if undo.has_weights else 1)]
            wrappers = [f"{undo.name.title()}Backward0"]
            self.run.op(
                f"aten::{undo.name}_backward", undo.self_ns, [gradient, *undo.saved], written, wrappers=wrappers
            )
            gradient, *of_weights = written
            for each in of_weights:
                self.run.op("aten::detach", 0, [each], [each], wrappers=["torch::autograd::AccumulateGrad"])
            self.gradients += of_weights

    def step(self, self_ns: int) -> None:
        """SGD with momentum, over lists of tensors."""
        self.run.module, self.run.phase = "", "optimizer"
        momenta = [self.run.tensor() for _ in self.weights]
        self.run.op("aten::_foreach_mul_", self_ns // 2, momenta, momenta, wrappers=["Optimizer.step#SGD.step"])
        self.run.op("aten::_foreach_add_", self_ns, momenta + self.gradients, momenta)
        self.run.op("aten::_foreach_add_", self_ns, self.weights + momenta, self.weights)

    def _next_layer(self) -> None:
        self.run.module = str(next(self._layers))

    def _next_weights(self) -> tuple[int, int]:
        self._next_layer()
        made = self.run.tensor(), self.run.tensor()
        self.weights += made
        return made

    def _relu(self, out: int, self_ns: int) -> None:
        self._next_layer()
        self.run.op("aten::clamp_min_", self_ns, [out], [out], wrappers=["aten::relu_"])
        self._will_undo("threshold", self_ns * 5 // 4, (out,))
        self.hidden = out

    def _will_undo(self, name: str, self_ns: int, saved: tuple[int, ...], *, has_weights: bool = False) -> None:
        self._undo.append(_Undo(self.run.module, name, self_ns, saved, has_weights))


def transformer(layers: int = 6, host_ns: int = 9_000) -> Profile:
    """One request of an encoder-decoder Transformer, batch 32, on a large GPU: more than 1000 instances."""
    run = FakeRun(host_ns=host_ns)
    source = run.tensor()
    for layer in range(layers):
        source = _block(run, f"encoder.layers.{layer}", source, None)
    run.module = "encoder.norm"
    memory = _norm(run, source)
    target = run.tensor()
    for layer in range(layers):
        target = _block(run, f"decoder.layers.{layer}", target, memory)
    run.module = "decoder.norm"
    _norm(run, target)
    return run.profile("Transformer, 6+6 layers, batch 32, inference")


def _block(run: FakeRun, path: str, hidden: int, memory: int | None) -> int:
    hidden = _residual(run, path, hidden, _attention(run, f"{path}.self_attn", hidden, hidden), "norm1")
    if memory is not None:
        hidden = _residual(run, path, hidden, _attention(run, f"{path}.multihead_attn", hidden, memory), "norm2")
    run.module = f"{path}.linear1"
    inner = _linear(run, hidden, 310_000)
    run.module = path
    inner = run.op("aten::clamp_min", 60_000, [inner], wrappers=["aten::relu"])
    run.module = f"{path}.dropout"
    run.module = f"{path}.linear2"
    return _residual(run, path, hidden, _linear(run, inner, 330_000), "norm3" if memory is not None else "norm2")


def _residual(run: FakeRun, path: str, hidden: int, branch: int, norm: str) -> int:
    run.module = path
    total = run.op("aten::add", 32_000, [hidden, branch])
    run.module = f"{path}.{norm}"
    return _norm(run, total)


def _norm(run: FakeRun, hidden: int) -> int:
    return run.op("aten::native_layer_norm", 24_000, [hidden], wrappers=["aten::layer_norm"])


def _linear(run: FakeRun, hidden: int, cost_ns: int) -> int:
    weight = run.tensor()
    run.op("aten::transpose", 0, [weight], [weight], wrappers=["aten::t"])
    run.op("aten::view", 0, [hidden], [hidden])
    out = run.op("aten::addmm", cost_ns, [hidden, weight], wrappers=["aten::linear"], flops=cost_ns * 20_000)
    run.op("aten::view", 0, [out], [out], wrappers=["aten::_unsafe_view"])
    return out


def _attention(run: FakeRun, path: str, queries: int, keys: int) -> int:
    run.module = path
    query, key, value = (_linear(run, x, 85_000) for x in (queries, keys, keys))
    heads = []
    for x in (query, key, value):
        run.op("aten::view", 0, [x], [x])
        run.op("aten::transpose", 0, [x], [x])
        run.op("aten::as_strided", 0, [x], [x], wrappers=["aten::select", "aten::unsqueeze"])
        heads.append(run.op("aten::copy_", 6_000, [x], wrappers=["aten::contiguous", "aten::clone"]))
    out = run.op(
        "aten::_flash_attention_forward",
        140_000,
        heads,
        wrappers=["aten::scaled_dot_product_attention", "aten::_scaled_dot_product_flash_attention"],
    )
    return _linear(run, out, 85_000)
