"""Properties that are computed once, when they are first read, without a lock."""

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

Value = TypeVar("Value")


class lockless_cached_property(Generic[Value]):  # noqa: N801  # a decorator, named as `property` is
    """`functools.cached_property` without its lock, which Python 3.11 shares among all instances.

    A child that is forked while another thread computes a value would inherit the lock held, and wait for ever. Two
    threads that read the property at the same time may both compute it, so the value must not depend on which of them
    does: use it on instances that never change.

    Example:
        >>> class Circle:
        ...     radius = 2.0
        ...
        ...     @lockless_cached_property
        ...     def area(self) -> float:
        ...         return 3.14 * self.radius**2
        >>> Circle().area
        12.56
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
