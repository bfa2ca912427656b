"""Models whose weights Accelerate keeps elsewhere, and loads while they are used.

With `device_map="auto"`, CPU or disk offload, the parameters of a module are on the meta device, without values, but
while its `forward` runs: a hook of Accelerate's that is wrapped around `forward` loads them from a mapping of names to
tensors, and takes them off again. So whatever needs a weight outside of a forward pass asks for it here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from accelerate.utils import send_to_device
from torch import nn

from .errors import PruningError
from .tensor_files import TensorFiles

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def offload_hook(module: nn.Module) -> Any | None:
    """The hook that loads a module's own parameters and takes them off again; None where they stay in memory."""
    return next((hook for hook in _hooks(module) if hook.offload), None)


def is_offloaded(module: nn.Module) -> bool:
    """Whether a module, or a part of it, has parameters that are loaded only while they are used."""
    return any(offload_hook(part) is not None for part in module.modules())


def device_of(model: nn.Module) -> torch.device:
    """The device that a model computes on, where its inputs belong: that of its first parameter, once that is loaded.

    A model on the meta device without anything to load stays there.
    """
    first = next(model.parameters()).device
    if first.type != "meta":
        return first
    hooks = (hook for part in model.modules() for hook in _hooks(part))
    devices = (hook.execution_device for hook in hooks if hook.execution_device is not None)
    return torch.device(next(devices, first))


def check_loadable(model: nn.Module) -> None:
    """Raises a PruningError where parameters have no values, and their module has nothing to load any from."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta and offload_hook(module) is None:
                raise PruningError(
                    f"{path}.{name} has no values: it is on the meta device, and no hook of Accelerate's on its own"
                    " module loads it. Load the model with from_pretrained, with or without a device_map."
                )


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers of a model with their values, by name; of those that are offloaded one at a time."""
    for path, module in model.named_modules():
        hook = offload_hook(module)
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield f"{path}.{name}" if path else name, hook.weights_map[name] if tensor.is_meta and hook else tensor


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Within it, a module's weights are in memory, however often it runs; they are read once."""
    loaded = []
    try:
        for part in module.modules():
            hook = offload_hook(part)
            if hook is not None:
                hook.pre_forward(part)
                hook.offload = False
                loaded.append((part, hook))
        yield
    finally:
        for part, hook in loaded:
            hook.offload = True
            hook.post_forward(part, None)


def copy_module(module: ModuleT) -> ModuleT:
    """A copy of a module with parameters of its own, which are loaded from where the module's are, if at all."""
    # Of a hook no deep copy: it knows all the weights of the model.
    memo = {id(part._hf_hook): _copied(part._hf_hook) for part in module.modules() if hasattr(part, "_hf_hook")}
    return copy.deepcopy(module, memo)


def copy_in_memory(module: ModuleT) -> ModuleT:
    """A copy of a module whose weights are in memory, without hooks that load any; its inputs go where they are."""
    with onloaded(module):
        copied = copy_module(module)
    hooked = [part for part in copied.modules() if hasattr(part, "_hf_hook")]
    for part in hooked:
        # Not by Accelerate's own function: it leaves each module a reference to itself, which keeps the weights alive.
        forward = part.__dict__.pop("_old_forward")
        del part._hf_hook, part.__dict__["forward"]
        if getattr(forward, "__func__", None) is not type(part).forward:  # a cut has replaced it
            part.forward = forward
    if hooked:
        copied.register_forward_pre_hook(partial(_to_device, device_of(copied)), with_kwargs=True)
    return copied


def _to_device(device: torch.device, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return send_to_device(args, device), send_to_device(kwargs, device)


def forward_name(module: nn.Module) -> str:
    """The attribute of a module that holds what it computes: a hook of Accelerate's is wrapped around that."""
    return "_old_forward" if hasattr(module, "_hf_hook") else "forward"


class ChangedWeights(Mapping[str, torch.Tensor]):
    """What a hook loads, with one parameter changed whenever it is read.

    Args:
        dataset: what is there without the change.
        name: of the parameter.
        change: makes the new values of the old ones.
    """

    def __init__(
        self, dataset: Mapping[str, torch.Tensor], name: str, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.dataset = dataset
        self._name, self._change = name, change

    def __getitem__(self, name: str) -> torch.Tensor:
        value = self.dataset[name]
        return self._change(value) if name == self._name else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)


def tensor_store(model: nn.Module) -> MutableMapping[str, torch.Tensor]:
    """Where tensors that grow with a model, or with its data, are kept: in memory, or in files where its weights are.

    The files of an offloaded model are in the `offload_folder` that it was loaded with, or else among the system's
    temporary files.
    """
    return TensorFiles(_offload_folder(model)) if is_offloaded(model) else {}


@contextmanager
def known_as_offloaded(model: nn.Module) -> Iterator[None]:
    """Within it, transformers can save an offloaded model: it goes by a device map, which not all of them have."""
    marked = is_offloaded(model) and getattr(model, "hf_device_map", None) is None
    if marked:
        model.hf_device_map = {"": "cpu"}  # type: ignore[assignment]
    try:
        yield
    finally:
        if marked:
            del model.hf_device_map


def read_from(model: nn.Module) -> set[Path]:
    """The folders of the files that an offloaded model's weights are read from."""
    index: Mapping[str, Any] = getattr(_source(model), "index", {})
    files = {entry["safetensors_file"] for entry in index.values() if "safetensors_file" in entry}
    return {Path(file).resolve().parent for file in files}


def _hooks(module: nn.Module) -> Iterator[Any]:
    """The hooks of Accelerate's that place a module's parameters and inputs."""
    hook = getattr(module, "_hf_hook", None)
    for one in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
        if isinstance(one, AlignDevicesHook):
            yield one


def _copied(hook: Any) -> Any:
    copied = copy.copy(hook)
    if isinstance(hook, SequentialHook):
        copied.hooks = tuple(copy.copy(one) for one in hook.hooks)
    return copied


def _source(model: nn.Module) -> Any:
    """What all hooks of a model load from in the end; None where nothing is offloaded."""
    hooks = (offload_hook(part) for part in model.modules())
    source: Any = next((hook.weights_map for hook in hooks if hook is not None), None)
    while hasattr(source, "dataset"):  # names with a prefix, changed weights
        source = source.dataset
    return source


def _offload_folder(model: nn.Module) -> Path | None:
    folder = getattr(_source(model), "save_folder", None)
    return Path(folder) if folder is not None and Path(folder).is_dir() else None
