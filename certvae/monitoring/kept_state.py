"""Runs a module's step again without side effects: state is restored, and logging is dropped."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor, nn

__all__ = ["kept_module_state", "silent"]

SILENCED = ("log", "log_dict", "print")


@contextmanager
def kept_module_state(module: nn.Module) -> Iterator[None]:
    """Restore the buffers and attributes of a module and its submodules, including metrics, on exit.

    The contents of tensors, lists, dicts and sets are restored one level deep. Other attributes get the same object
    again; changes inside it stay. Parameters are not restored: only an optimizer changes them.
    """
    kept = [(vars(part), dict(vars(part))) for part in module.modules()]
    contents = [_contents(value) for _, attributes in kept for value in attributes.values()]
    contents += [_contents(value) for value in module.buffers()]
    try:
        yield
    finally:
        for now, before in kept:
            now.clear()
            now.update(before)
        for value, content in contents:
            _put_back(value, content)


def _contents(value: Any) -> tuple[Any, Any]:
    if isinstance(value, nn.Parameter):
        return None, None
    if isinstance(value, Tensor):
        return value, value.detach().clone()
    return (value, value.copy()) if type(value) in (list, dict, set) else (None, None)


def _put_back(value: Any, content: Any) -> None:
    if isinstance(value, Tensor):
        if not torch.equal(value, content):  # an expanded view cannot be written to
            value.detach().copy_(content)
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, dict | set):
        value.clear()
        value.update(content)


@contextmanager
def silent(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Drop everything that the module logs and prints, also through its loggers."""
    own, loggers = {name: vars(pl_module)[name] for name in SILENCED if name in vars(pl_module)}, trainer.loggers
    for name in SILENCED:
        setattr(pl_module, name, _nothing)
    trainer.loggers = [DummyLogger()] if loggers else []
    try:
        yield
    finally:
        trainer.loggers = loggers
        for name in SILENCED:
            delattr(pl_module, name)
        for name, value in own.items():
            setattr(pl_module, name, value)


def _nothing(*arguments: Any, **named: Any) -> None:
    """Replaces a logging method."""
