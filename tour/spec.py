"""Settings as data: a call that can be made, read, and compared by its text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Given:
    """An argument that is only known when a `Spec` is called, e.g. the score; perhaps only its first `n` entries."""

    name: str
    n: int | None = None

    def __repr__(self) -> str:
        return self.name if self.n is None else f"{self.name}[:{self.n}]"


SCORE, BACKGROUND = Given("score"), Given("background")


@dataclass(frozen=True, eq=False)
class Spec:
    """A call that can be made and read.

    `call = spec(jx.smoothgrad, spec(jx.gradient, SCORE), n_samples=5)` reads
    `smoothgrad(gradient(score), n_samples=5)`.
    `call(score=f)` makes it with f as the score. Positional arguments, as in `call(f)`, come before those of the spec.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    settings: dict[str, Any]

    def __call__(self, *first: Any, **given: Any) -> Any:
        def value(argument: Any) -> Any:
            if isinstance(argument, Spec):
                return argument(**given)
            if isinstance(argument, Given):
                return given[argument.name][: argument.n] if argument.n else given[argument.name]
            return argument

        settings = {name: value(argument) for name, argument in self.settings.items()}
        return self.function(*first, *map(value, self.args), **settings)

    def __repr__(self) -> str:
        words = [*map(repr, self.args), *(f"{name}={argument!r}" for name, argument in self.settings.items())]
        return f"{self.function.__name__}({', '.join(words)})"


def spec(function: Callable[..., Any], *args: Any, **settings: Any) -> Spec:
    return Spec(function, args, settings)
