"""Properties that are computed when they are first asked for."""

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

Value = TypeVar("Value")


class lockless_cached_property(Generic[Value]):  # noqa: N801  # a decorator, named as `property` is
    """`functools.cached_property` without its lock, which Python 3.11 takes for all instances at once.

    A child forked while another thread computes would find that lock held for ever. Two threads that ask at the same
    time may both compute here, so the value must be the same whoever does: that of an instance that never changes.
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...

    def __get__(self, instance: object | None, owner: type) -> Self | Value:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._compute(instance)
        return value
