"""One way to break the library, as a small change of one file."""

import ast
from pathlib import Path

import attrs

SOURCE = Path(__file__).parents[2] / "src"


@attrs.frozen
class Mutant:
    """A change that breaks one promise, and the tests that are expected to notice."""

    name: str
    #: What does not hold any more.
    promise: str
    #: A module of the package.
    module: str
    old: str
    new: str
    #: Test files, or tests in them, separated by white space.
    killers: str

    def apply(self, source: Path) -> None:
        """Change the copy of the sources in `source`.

        Raises:
            ValueError: the old text is not there exactly once, or the new one is no Python.
        """
        file = source / "lockstitch" / f"{self.module}.py"
        text = file.read_text(encoding="utf-8")
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its text is {found} times in {file.name}, not once")
        changed = text.replace(self.old, self.new)
        try:
            ast.parse(changed)
        except SyntaxError as error:
            raise ValueError(f"{self.name}: {error}") from error
        file.write_text(changed, encoding="utf-8")
