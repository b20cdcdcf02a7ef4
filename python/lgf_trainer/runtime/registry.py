"""Classes found by name: in a folder of this package, in packages that are installed, or imported by hand."""

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import ClassVar, Self

from .errors import TrainerError, explained
from .settings import NoOptions


class ByName:
    """Base of a kind of classes that are found by their `name`.

    A subclass is known as soon as its module is imported. A look-up imports every module in the kind's folder, and every
    entry point that an installed package declares in the group `lgf_trainer.KIND`: a new one is a new file, and no other
    file names it.

    Attributes:
        kind: the folder, such as "generators".
        name: what a recipe or a command calls the class.
        Options: dataclass of what the class may be told, which is checked against its fields.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    known: ClassVar[dict[str, type]]

    def __init_subclass__(cls, kind: str | None = None, **options) -> None:
        super().__init_subclass__(**options)
        if kind:
            cls.kind, cls.known = kind, {}
        elif "name" in vars(cls):
            cls.known[cls.name] = cls

    @classmethod
    def all(cls) -> dict[str, type[Self]]:
        """Return name -> class."""
        package = importlib.import_module(f"lgf_trainer.{cls.kind}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        for entry in entry_points(group=package.__name__):
            with explained(f"{entry.value}, a module of {entry.dist.name}, cannot be imported", Exception):
                entry.load()
        return cls.known

    @classmethod
    def find(cls, name: str) -> type[Self]:
        """Return the class with a name; the error for another name lists those that there are."""
        known = cls.all()
        if name not in known:
            raise TrainerError(f"there is no {cls.kind[:-1]} {name!r}. There are: {', '.join(sorted(known))}")
        return known[name]
