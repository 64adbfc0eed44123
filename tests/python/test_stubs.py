"""_core.pyi and the built module have the same names."""

import ast
from pathlib import Path

import pagedcore
from pagedcore import _core

STUBS = Path(pagedcore.__file__).parent / "_core.pyi"


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


def test_stubs_and_module_have_the_same_names():
    stubs = names_in(ast.parse(STUBS.read_text()).body)
    assert public(stubs) == public(dir(_core)), "run cpp/bindings/make_stubs.py"


def test_classes_have_the_members_that_their_stubs_say():
    for name, members in names_in(ast.parse(STUBS.read_text()).body).items():
        if members is None:
            continue
        inherited = {n for base in getattr(_core, name).__mro__[1:] for n in vars(base)}
        own = public(vars(getattr(_core, name))) - public(inherited)
        assert public(members) - inherited == own, f"{name}: run cpp/bindings/make_stubs.py"
