"""Mutants of a module: copies of its syntax tree that each differ from it in one place.

Only what functions do changes. Module constants stay: they are tuned by measurements. So do annotations, decorators,
defaults, messages and logging.
"""

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_LOGS = {"log", "logger"}


class Mutant(NamedTuple):
    """One change. `name` stays the same when code moves: the function, and what becomes of which expression."""

    line: int
    function: str  # qualified
    name: str
    code: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Yields every mutant of a module."""
    for number, (line, function, change) in enumerate(_Mutator(source).found):
        yield Mutant(line, function, f"{function}: {change}", _Mutator(source, number).tree)


class _Mutator(ast.NodeTransformer):
    """Finds all places, and changes the one of number `wanted`."""

    def __init__(self, source: str, wanted: int = -1) -> None:
        self.found: list[tuple[int, str, str]] = []  # line, function, change
        self._wanted = wanted
        self._scope: list[str] = []
        self.tree = ast.fix_missing_locations(self.visit(ast.parse(source)))

    def visit(self, node: ast.AST) -> ast.AST:
        for after in _alternatives(node):
            self.found.append((node.lineno, ".".join(self._scope), _change(node, after)))  # type: ignore[attr-defined]
            if len(self.found) - 1 == self._wanted:
                return ast.copy_location(after, node)
        return super().visit(node)  # type: ignore[no-any-return]

    def visit_Module(self, node: ast.Module) -> ast.Module:
        node.body = self._functions_of(node.body)
        return node

    def _functions_of(self, body: list[ast.stmt]) -> list[ast.stmt]:
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return [self.visit(each) if isinstance(each, functions) else each for each in body]  # type: ignore[misc]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self._scope.append(node.name)
        node.body = self._functions_of(node.body)
        self._scope.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self._scope.append(node.name)
        node.body = [self.visit(each) for each in node.body]  # type: ignore[misc]
        self._scope.pop()
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self.visit_FunctionDef(node)  # type: ignore[arg-type]

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.value = node.value and self.visit(node.value)  # type: ignore[assignment]
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.JoinedStr:
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        return node if _is_log(node) else self.generic_visit(node)  # type: ignore[return-value]


def _change(before: ast.AST, after: ast.AST) -> str:
    was, becomes = (ast.unparse(node).split("\n")[0][:120] for node in (before, after))
    return f"{was} -> {becomes}"


def _alternatives(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                yield _with(node, ops=[*node.ops[:place], _COMPARISONS[type(operator)](), *node.ops[place + 1 :]])
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator):
            yield _with(node, op=_OPERATORS[type(operator)]())
        case ast.BoolOp(op=connective):
            yield _with(node, op=ast.Or() if isinstance(connective, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Call(func=ast.Name(id=name)) if name in _FUNCTIONS:
            yield _with(node, func=ast.Name(_FUNCTIONS[name], ast.Load()))
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
    if _can_go(node):
        yield ast.Pass()


def _can_go(node: ast.AST) -> bool:
    """Whether a statement can be left out, and what is read later is still there."""
    match node:
        case ast.Expr(value=ast.Call() | ast.Await()):
            return not _is_log(node)
        case ast.Assign(targets=targets):
            return any(isinstance(each, ast.Attribute | ast.Subscript) for each in targets)
        case ast.AugAssign() | ast.Delete() | ast.Raise():
            return True
    return False


def _is_log(node: ast.Expr) -> bool:
    match node.value:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name))):
            return name in _LOGS
    return False


def _with(node: ast.AST, **changes: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed
