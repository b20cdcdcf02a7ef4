"""None is asked for by `is None`: the truth of an object may be its length, and raise or be false when it is there."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file for folder in ("lgf_kernels", "python", "benchmarks") for file in (ROOT / folder).rglob("*.py"))

#: Types without a length, or whose empty value is meant as nothing.
PLAIN = {
    "None", "str", "int", "float", "bool", "bytes", "list", "tuple", "dict", "set", "Path", "Fraction", "Sequence", "Mapping",
    "date", "datetime", "dtype", "device", "Literal", "Match",
}  # fmt: skip


def types_of(annotation: ast.expr | None) -> set[str]:
    """The types that an annotation joins by `|`, without their parameters."""
    if isinstance(annotation, ast.BinOp):
        return types_of(annotation.left) | types_of(annotation.right)
    if isinstance(annotation, ast.Subscript):
        return types_of(annotation.value)
    return {ast.unparse(annotation).rpartition(".")[2]} if annotation else set()


def truths(tree: ast.AST):
    """The expressions whose truth is asked."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            yield node.test
        elif isinstance(node, ast.BoolOp):
            yield from node.values
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node.operand
        elif isinstance(node, ast.comprehension):
            yield from node.ifs


def mistakes(text: str) -> list[str]:
    """Lines that ask for the truth of an argument, attribute or variable that is an object or None."""
    found = []
    tree = ast.parse(text)
    attributes = set()
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]

    def optional(annotation) -> bool:
        types = types_of(annotation)
        return "None" in types and bool(types - PLAIN)

    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and optional(node.annotation):
            attributes.add(ast.unparse(node.target).removeprefix("self."))
    for scope in scopes:
        arguments = scope.args.posonlyargs + scope.args.args + scope.args.kwonlyargs
        names = {argument.arg for argument in arguments if optional(argument.annotation)}
        for node in ast.walk(scope):
            if (
                isinstance(node, ast.Assign | ast.AnnAssign)
                and isinstance(node.value, ast.Name)
                and node.value.id in names
            ):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                attributes |= {target.attr for target in targets if isinstance(target, ast.Attribute)}
        found += [
            f"{node.lineno}: {node.id}" for node in truths(scope) if isinstance(node, ast.Name) and node.id in names
        ]
    found += [
        f"{node.lineno}: {node.attr}"
        for node in truths(tree)
        if isinstance(node, ast.Attribute) and node.attr in attributes
    ]
    return sorted(set(found))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_none_is_asked_for_by_name(file):
    assert mistakes(file.read_text()) == []


def test_mistakes_are_found():
    text = """
def f(module: nn.Module | None, name: str | None, tensors: Callable[[int], int] | None = None):
    if module and name:
        pass
    return tensors or module is None

class A:
    state: State | None = None
    def __init__(self, projector: nn.Module | None):
        self.projector = projector
    def run(self, x):
        return self.projector(x) if self.projector else not self.state
"""
    assert [line.split(": ")[1] for line in mistakes(text)] == ["projector", "state", "module", "tensors"]
