"""_core.pyi and the built module have the same names."""

import ast
from pathlib import Path

import pytest

import pagedcore
from pagedcore import _core

STUBS = Path(pagedcore.__file__).parent / "_core"
MODULES = {path.stem: path for path in STUBS.glob("*.pyi")}
each_module = pytest.mark.parametrize("name", sorted(MODULES))


def module(name):
    return _core if name == "__init__" else getattr(_core, name)


def public(names):
    return {name for name in names if not name.startswith("_")}


def names_in(body):
    """Names that statements of a stub define, with those of each class."""
    found = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = set(names_in(node.body))
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = None
        elif isinstance(node, ast.AnnAssign):
            found[node.target.id] = None
        elif isinstance(node, ast.Assign):
            found.update((target.id, None) for target in node.targets)
    return found


@each_module
def test_stubs_and_module_have_the_same_names(name):
    stubs = public(names_in(ast.parse(MODULES[name].read_text()).body))
    inner = {path.stem for path in STUBS.glob("*.pyi")} if name == "__init__" else set()
    assert stubs | public(inner) == public(dir(module(name))), "run cpp/bindings/make_stubs.py"


@each_module
def test_classes_have_the_members_that_their_stubs_say(name):
    for kind, members in names_in(ast.parse(MODULES[name].read_text()).body).items():
        if members is None:
            continue
        mro = getattr(module(name), kind).__mro__
        inherited = {n for base in mro[1:] for n in vars(base)}
        own = public(vars(mro[0])) - public(inherited)
        assert public(members) - inherited == own, f"{kind}: run cpp/bindings/make_stubs.py"
