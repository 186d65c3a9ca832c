"""Layer paths for Flax NNX, whose modules do not name their operations in a traced program."""

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache, wraps
from inspect import getattr_static
from types import FunctionType
from typing import Any, TypeVar

import jax

from jaxplain._errors import SettingError, explain_error

_M = TypeVar("_M")
# The modules whose methods are running, outermost first. It prevents a second scope when a method calls another method
# of its own module.
_RUNNING: ContextVar[tuple[int, ...]] = ContextVar("_RUNNING", default=())
_SCOPE = "_jaxplain_scope"


def named(model: _M) -> _M:
    """A copy of an NNX model whose modules run under name scopes, i.e. their paths, such as `encoder/layers/0/norm`.

    With these, `jx.layers`, `jx.plan` and composites know the layers by path. The copy shares the arrays of `model`,
    but not its variables, so it does not follow later updates. A module with several paths gets the alphabetically
    first.

    Arguments:
        model: An NNX module. Linen, Haiku and Equinox do not need this.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> from flax import nnx
        >>> class Net(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.hidden, self.head = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)
        ...     def __call__(self, x):
        ...         return self.head(nnx.relu(self.hidden(x)))
        >>> net = jx.nnx.named(Net(nnx.Rngs(0)))
        >>> [node.path for node in jx.layers(lambda x: net(x)[0])(jnp.ones(4)) if node.kind == "dense"]
        ['hidden', 'head']
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise SettingError(
            explain_error(
                "nnx.named: `model` must be an nnx.Module.",
                got=type(model).__name__,
                fix="Linen, Haiku and Equinox name their layers themselves; elsewhere: with jax.named_scope(...)",
            )
        )
    copy = nnx.clone(model)
    paths = {id(module): path for path, module in reversed(list(nnx.iter_modules(copy)))}
    for path, module in list(nnx.iter_modules(copy)):
        if path and paths[id(module)] == path:
            setattr(module, _SCOPE, "/".join(map(str, path[_depth(path, copy) :])))
            module.__class__ = _with_scope(type(module))  # type: ignore[arg-type]
    return copy


def _depth(path: tuple, root: Any) -> int:
    """The length of the path of the nearest enclosing module that is called. Lists and dictionaries are not called."""
    from flax import nnx

    containers = tuple(getattr(nnx, name) for name in ("List", "Dict") if hasattr(nnx, name))
    value, depth = root, 0
    for i, part in enumerate(path[:-1]):
        value = value[part] if isinstance(part, int) or not hasattr(value, str(part)) else getattr(value, part)
        if isinstance(value, nnx.Module) and not isinstance(value, containers):
            depth = i + 1
    return depth


@cache
def _with_scope(cls: type) -> type:
    """A subclass whose methods run under the module's name scope."""
    namespace = {name: _scoped(function) for name, function in _methods(cls)}
    return type(cls)(
        cls.__name__, (cls,), {**namespace, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    )


def _methods(cls: type) -> Iterator[tuple[str, Callable]]:
    """The public methods of a module class that its author wrote, without those that every module has."""
    from flax import nnx

    for name in dir(cls):
        function = getattr_static(cls, name)  # finds no static methods and properties
        is_own = getattr_static(nnx.Module, name, None) is not function
        if is_own and (name == "__call__" or not name.startswith("_")) and isinstance(function, FunctionType):
            yield name, function


def _scoped(function: Callable) -> Callable:
    @wraps(function)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        running = _RUNNING.get()
        if running and running[-1] == id(self):
            return function(self, *args, **kwargs)
        token = _RUNNING.set((*running, id(self)))
        try:
            with jax.named_scope(getattr(self, _SCOPE)):
                return function(self, *args, **kwargs)
        finally:
            _RUNNING.reset(token)

    return run
