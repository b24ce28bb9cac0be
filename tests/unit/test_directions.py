"""The house's rule of imports: which room may use which, and who may import axolotl."""

import ast
from collections.abc import Iterator
from pathlib import Path

import axolotl_tspin

PACKAGE = Path(axolotl_tspin.__file__).parent
ROOMS = [
    {"errors", "config", "triplets", "logs"},
    {"training", "run"},
    {"strategies", "verdicts"},
    {"resolve"},
    {"generation"},
    {"diagnostics"},
    {"planning", "plugin"},
    {"commands"},
]
"""Each may use those before it, and itself. Rooms of one line never use each other, except for the
words of the first line."""

AXOLOTL = {"commands", "plugin", "generation", "resolve", "strategies", "planning"}
LOAD_POLICIES = {"diagnostics/comparison.py", "diagnostics/rescoring.py"}
ENTRANCES = {"__init__.py", "__main__.py"}


def modules() -> list[Path]:
    return sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """Every module that a source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def violations(path: Path, source: str) -> list[str]:
    """What a module at this place in the package imports against the rule."""
    room = path.parts[0].removesuffix(".py")
    line = next((i for i, rooms in enumerate(ROOMS) if room in rooms), None)
    if line is None:
        return [f"{path}: {room} is not a room of the house"]
    allowed = {room}.union(*ROOMS[: max(line, 1)])
    found = []
    for module in imported(source):
        top = module.split(".")[0]
        if top == "axolotl_tspin" and room_of(module) not in {*allowed, "__init__"}:
            found.append(f"{path}: {room} uses {module}")
        if top == "axolotl" and room not in AXOLOTL and path.as_posix() not in LOAD_POLICIES:
            found.append(f"{path}: imports {module}")
        if top == "torch" and line == 0:
            found.append(f"{path}: imports {module}")
    return found


def test_every_import_goes_in_the_allowed_direction():
    found = [
        violation
        for path in modules()
        if path.as_posix() not in ENTRANCES
        for violation in violations(path, (PACKAGE / path).read_text())
    ]
    assert found == []


def test_a_violation_is_found_wherever_it_stands():
    lazily = "def f():\n    from axolotl_tspin.{} import x\n"
    for path, module in (
        ("training/loss.py", "run.tables"),
        ("run/tables.py", "training.loss"),
        ("resolve/steps.py", "generation.step"),
        ("generation/step.py", "diagnostics.figures"),
        ("plugin/plugin.py", "planning.plan"),
        ("errors.py", "run.files"),
    ):
        assert violations(Path(path), lazily.format(module)), (path, module)
    assert violations(Path("run/tables.py"), "import axolotl.utils.dict")
    assert violations(Path("config.py"), "import torch.nn")
    assert violations(Path("helpers.py"), "")


def test_modules_are_small():
    sizes = {path.as_posix(): len((PACKAGE / path).read_text().splitlines()) for path in modules()}
    assert {path: size for path, size in sizes.items() if size > 400} == {}
    assert not {path for path in sizes if Path(path).stem in ("utils", "helpers", "common")}


def circles(uses: dict[str, set[str]]) -> set[str]:
    """Take away modules that use no other one, again and again; the modules that are left."""
    left = dict(uses)
    while leaves := [name for name, used in left.items() if not used & left.keys()]:
        for name in leaves:
            del left[name]
    return set(left)


def test_no_circles_between_modules():
    """Imports of modules within a room as well, lazy ones included."""
    names = {
        "axolotl_tspin." + ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
        for path in modules()
        if path.as_posix() not in ENTRANCES
    }
    uses = {
        name: {m for m in imported((PACKAGE / path).read_text()) if m in names and m != name}
        for name, path in names.items()
    }
    assert circles(uses) == set(), "these import one another"


def test_a_circle_is_found():
    uses = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert circles(uses) == {"a", "b", "c"}
    assert circles(uses | {"c": {"d"}}) == set()
