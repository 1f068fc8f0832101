"""Which module of the model an op belongs to: the borders of every module's forward as marks of the recorder.

By torch's process-wide module hooks, so that a script's model need not be handed over. A module's path is the one
under its root, "layers.0.attention"; a root's own is its class. The first root is the model's; another one's paths
begin with its class, so that a discriminator and a generator are told apart.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules import module as hooks

if TYPE_CHECKING:
    from herald.hooks.recorder import Recorder


class ModuleMarks:
    """The paths of the modules that were seen, or are those of ``model``."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self._paths: dict[nn.Module, str] = {}
        if model is not None:
            self._add_root(model)

    @contextmanager
    def sent_to(self, recorder: "Recorder") -> Iterator[None]:
        """Mark the begin and the end of every forward."""

        def begin(module: nn.Module, inputs: object) -> None:
            del inputs
            if not torch.compiler.is_compiling():  # a compiled region is one op, and compiled again if this did more
                recorder.mark_begin(self.path(module))

        def end(module: nn.Module, inputs: object, output: object) -> None:
            del module, inputs, output
            if not torch.compiler.is_compiling():
                recorder.mark_end()

        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Using `torch.compile")  # that hooks also see its wrapper, as they may
            stack.callback(hooks.register_module_forward_pre_hook(begin).remove)
            stack.callback(hooks.register_module_forward_hook(end, always_call=True).remove)
            yield

    def path(self, module: nn.Module) -> str:
        """The path of a module; an unknown one is a root."""
        if module not in self._paths:
            self._add_root(module)
        return self._paths[module]

    def _add_root(self, root: nn.Module) -> None:
        title = type(root).__name__
        prefix = f"{title}." if self._paths else ""
        for name, module in root.named_modules():
            self._paths.setdefault(module, f"{prefix}{name}" if name else title)
