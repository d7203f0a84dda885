"""Registries: ``Registry[T]`` maps a name to a class or factory.

Other packages add names through entry points, which are loaded only when a name is looked up or
listed::

    [project.entry-points."reidguard.attacks"]
    my_attack = "my_package.attacks:MyAttack"
"""

from __future__ import annotations

import fnmatch
import inspect
import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module, metadata
from typing import Any, Generic, TypeVar

from reidguard.errors import InputError, RegistryError, did_you_mean

__all__ = ["Registry"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def _owner(factory: Callable[..., Any]) -> str:
    name = getattr(factory, "__qualname__", type(factory).__qualname__)
    return f"{factory.__module__}.{name}"


class Registry(Generic[T]):
    """Named factories of one kind of object.

    Args:
        kind: What is registered, in the singular, for error messages.
        group: Entry-point group of the names that installed packages add.
        base: Class that registered classes must derive from; None takes any.
        functions: Whether functions may be registered, too.
        builtin: Names of this library that are imported when they are first looked up, each as
            "module:attribute".
        package: A package whose modules register names, imported when one is first looked up.

    Example:
        >>> ANIMALS: Registry[str] = Registry("animal", group="doctest.animals")
        >>> @ANIMALS.register("cat")
        ... def cat(sound="meow"):
        ...     return sound
        >>> ANIMALS.create("cat", sound="purr")
        'purr'
        >>> ANIMALS.create("cta")
        Traceback (most recent call last):
        ...
        reidguard.errors.RegistryError: unknown animal 'cta': did you mean 'cat'? known: cat
    """

    def __init__(
        self,
        kind: str,
        *,
        group: str,
        base: type[Any] | None = None,
        functions: bool = True,
        builtin: Mapping[str, str] | None = None,
        package: str | None = None,
    ) -> None:
        self.kind = kind
        self.group = group
        self._base, self._functions = base, functions
        self._builtin = dict(builtin or {})
        self._package = package
        self._factories: dict[str, Callable[..., T]] = {}
        self._plugins_loaded = False

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that registers a class or function under ``name``.

        Raises:
            RegistryError: If it is not such a class or function, or another object already has
                the name; the message names both owners.
        """

        def decorate(factory: F) -> F:
            self._add(name, factory)
            return factory

        return decorate

    def _add(self, name: str, factory: Callable[..., T]) -> None:
        if problem := self._problem(factory):
            raise RegistryError(f"{self.kind} {name!r} cannot be registered: {problem}")
        if not factory.__module__.startswith(str(self._package)):
            self._load_package()  # its names are taken
        taken = self._factories.get(name)
        if taken is not None and _owner(taken) != _owner(factory):
            raise RegistryError(
                f"{self.kind} {name!r} is registered twice: by {_owner(taken)} and by "
                f"{_owner(factory)}; give one of them another name"
            )
        self._factories[name] = factory

    def _problem(self, factory: object) -> str:
        """Return why something cannot be registered; empty if it can."""
        known = f"a class that derives from {_owner(self._base)}" if self._base else "a class"
        expected = f"{known} or a function" if self._functions else known
        if isinstance(factory, type):
            if self._base is None or issubclass(factory, self._base):
                return ""
            return f"{_owner(factory)} is not {expected}"
        if self._functions and callable(factory):
            return ""
        return f"it is of type {type(factory).__name__}, not {expected}"

    def _load_package(self) -> None:
        if self._package is not None:
            import_module(self._package)

    def _load_builtin(self, name: str) -> None:
        if name in self._builtin and name not in self._factories:
            module, _, attribute = self._builtin[name].partition(":")
            self._add(name, getattr(import_module(module), attribute))

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        self._load_package()
        for name in self._builtin:
            self._load_builtin(name)
        for entry in metadata.entry_points(group=self.group):
            if message := self._load_plugin(entry):
                package = entry.dist.name if entry.dist else "an unknown package"
                warnings.warn(
                    f"{self.kind} plugin {entry.name!r} of {package} ({entry.value}) {message}; "
                    f"update {package}, or uninstall it",
                    stacklevel=3,
                )

    def _load_plugin(self, entry: metadata.EntryPoint) -> str:
        """Register a plugin; return what is wrong with it, if anything."""
        printed = io.StringIO()  # standard output belongs to the caller
        try:
            with redirect_stdout(printed):
                factory = entry.load()
            if problem := self._problem(factory):
                return f"is left out: {problem}"
            self._add(entry.name, factory)
        except KeyboardInterrupt:
            self._plugins_loaded = False
            raise
        except RegistryError as error:
            return f"is left out: {error}"
        except SystemExit as error:
            return f"is left out: it ends the process when it is imported (exit code {error.code})"
        except BaseException as error:  # of another package: any error is possible
            return f"is left out: {type(error).__name__}: {error}"
        if text := printed.getvalue().strip():
            return f"prints when it is imported ({text.splitlines()[0][:80]!r})"
        return ""

    def get(self, name: str) -> Callable[..., T]:
        """Return the class or factory registered under ``name``.

        Raises:
            RegistryError: If the name is unknown; the message suggests the nearest ones.
        """
        if not isinstance(name, str):
            raise RegistryError(f"a {self.kind} is named by text, not {name!r}: choose a name")
        self._load_builtin(name)
        if name not in self._factories:
            self._load_package()
        if name not in self._factories:
            self._load_plugins()
        try:
            return self._factories[name]
        except KeyError:
            hint = did_you_mean(name, self._factories, most=3)
            raise RegistryError(
                f"unknown {self.kind} {name!r}: {hint}known: {', '.join(self.list())}"
            ) from None

    def create(self, name: str, /, *args: Any, **kwargs: Any) -> T:
        """Build the object registered under ``name`` with these arguments.

        Raises:
            InputError: If its class or factory does not take them; the message lists what it takes.
            RegistryError: If a function returns something else than an object of that kind.
        """
        factory = self.get(name)
        try:
            inspect.signature(factory).bind(*args, **kwargs)
        except TypeError as error:
            accepted = ", ".join(inspect.signature(factory).parameters)
            raise InputError(f"{self.kind} {name!r}: {error}; it takes: {accepted}") from None
        except ValueError:
            pass  # some builtins have no signature
        created = factory(*args, **kwargs)
        if self._base is not None and not isinstance(created, self._base):
            raise RegistryError(
                f"{self.kind} {name!r}: {_owner(factory)} returned an object of type "
                f"{type(created).__name__}, not of one that derives from {_owner(self._base)}"
            )
        return created

    def list(self, pattern: str = "*") -> list[str]:
        """Return the sorted names, plugins included, that match a shell-style ``pattern``."""
        self._load_plugins()
        return sorted(fnmatch.filter(self._factories, pattern))

    def name_of(self, factory: Callable[..., Any]) -> str:
        """Return the name under which a class or factory is registered.

        Raises:
            RegistryError: If it is not registered.
        """
        for _ in range(2):
            for name, known in self._factories.items():
                if known is factory:
                    return name
            self._load_plugins()
        raise RegistryError(
            f"{_owner(factory)} is not a registered {self.kind}; register it first, since a "
            "saved file names its class only through the registry"
        )

    def __contains__(self, name: object) -> bool:
        self._load_plugins()
        return name in self._factories
