"""Single bugs, made by rules over a syntax tree: what a person might write by mistake.

A rule looks at one node and yields edits (start, end, new text), in bytes of the source, so that
all else stays as it was.  No rule touches a docstring, an error's text, an import or an annotation;
nor makes an edit that it can know to change nothing, such as x * 1 to x / 1.
"""

import ast
import re
from dataclasses import dataclass

RULES = {}

OPERATORS = {"+": "-", "-": "+", "*": "/", "/": "*", "&": "|", "|": "&", "and": "or", "or": "and"}
COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
REDUCED = {-1: 0, 0: -1, 1: 0, 2: 1, -2: -1, -3: -2}  # another axis of a sum, a mean, a softmax
BESIDE = {-1: -2, 0: 1, 1: 0, 2: 1, -2: -1, -3: -2}  # another one of a shape or of two swapped
COUNTERPARTS = [
    *[("maximum", "minimum"), ("max", "min"), ("argmax", "argmin"), ("any", "all"), ("sin", "cos")],
    *[("sum", "mean"), ("zeros", "ones"), ("zeros_like", "ones_like"), ("tril", "triu")],
    *[("add", "subtract"), ("multiply", "divide"), ("floor", "ceil"), ("cumsum", "cumprod")],
]
FUNCTIONS = dict(COUNTERPARTS) | {b: a for a, b in COUNTERPARTS}
UNARY = {"sqrt", "square", "abs", "exp", "log", "log1p", "tanh", "reversed", "sorted"}
NOT_EVEN = {"exp", "expm1", "tanh", "sin", "sinh"}
# Their first two arguments can change places, or must not for the program to make sense.
EITHER_WAY = {"add", "multiply", "maximum", "minimum", "max", "min", "vecdot", "vdot", "logaddexp"}
EITHER_WAY |= {"where", "einsum", "isinstance", "issubdtype", "getattr", "array_equal"}
BOUNDS = {"max", "min", "maximum", "minimum", "clip"}


@dataclass(frozen=True)
class Bug:
    path: str
    within: tuple  # the function or class that it is in, and the module's that use that
    rule: str
    line: int
    start: int
    end: int
    new: str

    def applied(self, source):
        return source[: self.start] + self.new.encode() + source[self.end :]

    def before_and_after(self, source):
        """The lines it touches."""
        first = source.rfind(b"\n", 0, self.start) + 1
        last = source.find(b"\n", self.end)
        last = len(source) if last < 0 else last
        after = source[first : self.start] + self.new.encode() + source[self.end : last]
        return source[first:last].decode(), after.decode()


def bugs(path, source):
    """Every bug of every rule in a source (bytes), each once."""
    code, seen = Code(source), {source}
    for node in mutable(code.tree):
        for name, rule in RULES.items():
            for start, end, new in rule(code, node):
                line = source.count(b"\n", 0, start) + 1
                bug = Bug(path, code.within(line), name, line, start, end, new)
                edited = bug.applied(source)
                if edited not in seen and parses(edited):
                    yield bug
                seen.add(edited)


def mutable(node):
    """The nodes that may be changed; each knows its parent."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (is_left_alone(child) or is_text(child)):
                child.parent = node
                yield child
                yield from mutable(child)


def is_left_alone(node):
    if isinstance(node, ast.Assign):
        return any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.Assert)


def is_text(node):
    """Whether an expression is a sentence for people, or part of one."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and (not node.value or " " in node.value)
    if isinstance(node, ast.BinOp):
        return is_text(node.left) or is_text(node.right)
    if isinstance(node, ast.IfExp):
        return is_text(node.body) or is_text(node.orelse)
    return isinstance(node, ast.JoinedStr)


def parses(source):
    try:
        return bool(ast.parse(source))
    except SyntaxError:
        return False


class Code:
    """A source with its tree, and where each node stands in it."""

    OPERATOR = re.compile(
        rb"(?:[\s)\\]|#.*\n)*(\*\*|//|<<|>>|[<>=!]=|[-+*/@%&|^<>]|and\b|or\b|is\b|not\b|in\b)"
    )

    def __init__(self, source):
        self.source, self.tree = source, ast.parse(source)
        self.lines = [0] + [m.end() for m in re.finditer(rb"\n", source)]
        self.parts = {node.name: node for node in self.tree.body if hasattr(node, "name")}
        self.uses = {name: set(map(name_of, ast.walk(node))) for name, node in self.parts.items()}

    def start(self, node):
        return self.lines[node.lineno - 1] + node.col_offset

    def end(self, node):
        return self.lines[node.end_lineno - 1] + node.end_col_offset

    def span(self, node):
        return self.start(node), self.end(node)

    def slice(self, start, end):
        return self.source[start:end].decode()

    def text(self, node):
        return self.slice(*self.span(node))

    def within(self, line):
        """The function or class of the module that a line is in, and those that lead to it."""
        names = [n for n, node in self.parts.items() if node.lineno <= line <= node.end_lineno]
        for name in names:
            names += [n for n in self.parts if name in self.uses[n] and n not in names]
        return tuple(names)

    def operator(self, left):
        """Where the operator after an operand stands."""
        return self.OPERATOR.match(self.source, self.end(left)).span(1)

    def sides(self, node, left):
        """What stands on both sides of the operator after `left`, with its parentheses."""
        (start, end), (first, last) = self.operator(left), self.span(node)
        return self.slice(first, start).rstrip(), self.slice(end, last).lstrip()

    def owner(self, function):
        """a of a.f, with its parentheses."""
        start, end = self.start(function), self.end(function) - len(function.attr.encode())
        return self.slice(start, end).rstrip().removesuffix(".").rstrip()

    def swap(self, a, b):
        """Two nodes that change places."""
        between = self.slice(self.end(a), self.start(b))
        return self.start(a), self.end(b), self.text(b) + between + self.text(a)


def rule(function):
    RULES[function.__name__.replace("_", " ")] = function
    return function


def is_binary(node, *operators):
    return isinstance(node, ast.BinOp) and isinstance(node.op, operators)


def number(node):
    """The value of a number that is written out, with its sign; else None."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        positive = number(node.operand)
        return None if positive is None else -positive
    plain = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    return node.value if plain else None


def name_of(node):
    """f of f, np.f and a.f."""
    return getattr(node, "attr", None) or getattr(node, "id", None)


def called(node, names=None):
    """The name of the function that a node calls, if it is one of these."""
    name = name_of(node.func) if isinstance(node, ast.Call) else None
    return name if names is None or name in names else None


def axis_choices(node):
    """The other axes to choose from, if a node is the number of an axis."""
    up = node.parent
    up = up.parent if isinstance(up, ast.Tuple) else up
    if isinstance(up, ast.keyword) and up.arg == "axis":
        return REDUCED
    of_shape = isinstance(up, ast.Subscript) and name_of(up.value) == "shape" and up.slice is node
    return BESIDE if of_shape or called(up, {"swapaxes", "moveaxis"}) else None


@rule
def term_dropped(code, node):
    """a + b -> a, b;  a - b -> a, -b"""
    if is_binary(node, ast.Add, ast.Sub):
        left, right = code.sides(node, node.left)
        if number(node.right) != 0:
            yield *code.span(node), left
        if number(node.left) != 0:
            yield *code.span(node), right if isinstance(node.op, ast.Add) else "-" + right


@rule
def factor_dropped(code, node):
    """a * b -> a, b;  a / b -> a"""
    if is_binary(node, ast.Mult, ast.Div):
        left, right = code.sides(node, node.left)
        if number(node.right) != 1:
            yield *code.span(node), left
        if isinstance(node.op, ast.Mult) and number(node.left) != 1:
            yield *code.span(node), right


@rule
def operands_swapped(code, node):
    """a - b -> b - a, and so for / and @ and einsum's first two"""
    if is_binary(node, ast.Sub, ast.Div, ast.MatMult):
        left, right = code.sides(node, node.left)
        left = f"({left})" if isinstance(node.left, ast.BinOp) else left
        yield *code.span(node), f"{right} {code.slice(*code.operator(node.left))} {left}"
    if called(node, {"einsum"}) and len(node.args) > 2:
        letters = str(getattr(node.args[0], "value", "")).replace(" ", "").split("->")[0].split(",")
        if len(set(letters[:2])) > 1:
            yield code.swap(*node.args[1:3])


@rule
def other_operator(code, node):
    """+ <-> -, * <-> /, & <-> |, and <-> or"""
    if isinstance(node, ast.BoolOp):
        place = code.operator(node.values[0])
    elif is_binary(node, ast.Add, ast.Sub) and number(node.right) != 0:
        place = code.operator(node.left)
    elif is_binary(node, ast.Mult, ast.Div) and number(node.right) not in (1, -1):
        place = code.operator(node.left)
    elif is_binary(node, ast.BitAnd, ast.BitOr):
        place = code.operator(node.left)
    else:
        return
    yield *place, OPERATORS[code.slice(*place)]


@rule
def other_assignment(code, node):
    """+= <-> -=, *= <-> /=, &= <-> |="""
    if isinstance(node, ast.AugAssign):
        start, end = code.operator(node.target)
        if (operator := code.slice(start, end)) in OPERATORS:
            yield start, end, OPERATORS[operator]


@rule
def not_added(code, node):
    """a += b -> a = b, and so for -=, *=, …"""
    if isinstance(node, ast.AugAssign):
        yield *code.operator(node.target), ""


@rule
def statement_dropped(code, node):
    """a += b -> pass;  f(a) for its effect -> pass"""
    effect = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if effect or isinstance(node, ast.AugAssign):
        yield *code.span(node), "pass"


@rule
def comparison_off_by_one(code, node):
    """< <-> <=, > <-> >=, == <-> !="""
    if isinstance(node, ast.Compare):
        for operand in [node.left, *node.comparators[:-1]]:
            start, end = code.operator(operand)
            if (operator := code.slice(start, end)) in COMPARISONS:
                yield start, end, COMPARISONS[operator]


@rule
def condition_dropped(code, node):
    """a and b -> a, b, and so for or"""
    if isinstance(node, ast.BoolOp):
        yield *code.span(node), code.sides(node, node.values[0])[1]
        yield *code.span(node), code.sides(node, node.values[-2])[0]


@rule
def guard_negated(code, node):
    """if a -> if not (a), also in an expression and a comprehension"""
    tests = node.ifs if isinstance(node, ast.comprehension) else []
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        tests = [node.test]
    for test in tests:
        yield *code.span(test), f"not ({code.text(test)})"


@rule
def check_dropped(code, node):
    """if a: raise … -> if False: raise …"""
    if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise):
        yield *code.span(node.test), "False"


@rule
def branches_swapped(code, node):
    """where(a, b, c) -> where(a, c, b)"""
    if called(node, {"where"}) and len(node.args) == 3:
        yield code.swap(*node.args[1:])


@rule
def mask_not_inverted(code, node):
    """~a -> a"""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        yield *code.span(node), code.slice(code.start(node) + 1, code.end(node))


@rule
def sign_lost(code, node):
    """-a -> a, also of a number: a ** -0.5 -> a ** 0.5"""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        named = axis_choices(node) or called(node.parent, {"reshape"})
        if not (named and number(node) is not None):
            yield *code.span(node), code.slice(code.start(node) + 1, code.end(node))


@rule
def wrong_number(code, node):
    """An integer c -> c + 1, a float c -> 2 c (0.0 -> 1.0), also where it is a default"""
    value, negative = number(node), isinstance(getattr(node, "parent", None), ast.UnaryOp)
    if value is None or negative or axis_choices(node):
        return
    if not (value == -1 and called(node.parent, {"reshape"})):  # any negative number does there
        yield *code.span(node), repr(value + 1 if isinstance(value, int) else 2 * value or 1.0)


@rule
def wrong_axis(code, node):
    """axis=-1 <-> axis=0, x.shape[-1] -> x.shape[-2], swapaxes(-1, -2) -> swapaxes(-2, -2)"""
    value, negative = number(node), isinstance(node.parent, ast.UnaryOp)
    choices = None if value is None or negative else axis_choices(node)
    if choices and value in choices:
        yield *code.span(node), repr(choices[value])


@rule
def axis_not_added(code, node):
    """a[..., None] -> a;  a[:, None] -> a[None]"""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        written = code.text(node.slice)
        if written == "..., None":
            yield *code.span(node), code.slice(code.start(node), code.end(node.value))
        if written == ":, None":
            yield *code.span(node.slice), "None"


@rule
def kept_axis_dropped(code, node):
    """keepdims=True -> keepdims=False"""
    if isinstance(node, ast.keyword) and node.arg == "keepdims":
        yield *code.span(node), "keepdims=False"


@rule
def sum_not_taken(code, node):
    """a.sum(axis=0) -> a[0], of the same shape; for -1 and with keepdims likewise"""
    if called(node, {"sum", "mean"}) and isinstance(node.func, ast.Attribute) and not node.args:
        options = {k.arg: number(k.value) for k in node.keywords}
        kept, axis = ":1" if "keepdims" in options else "0", options.get("axis")
        if axis in (0, -1):
            yield *code.span(node), f"{code.owner(node.func)}[{'..., ' * (axis == -1)}{kept}]"


@rule
def transposition_dropped(code, node):
    """a.T, a.mT, a.swapaxes(…) -> a"""
    if isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
        yield *code.span(node), code.owner(node)
    if called(node, {"swapaxes"}) and isinstance(node.func, ast.Attribute):
        yield *code.span(node), code.owner(node.func)


@rule
def other_function(code, node):
    """maximum <-> minimum, sum <-> mean, sin <-> cos, any <-> all, zeros <-> ones, …"""
    known = FUNCTIONS if isinstance(node, ast.Attribute) else {}
    if isinstance(node, ast.Name) and node is getattr(node.parent, "func", None):
        known = {name: FUNCTIONS[name] for name in ("max", "min", "any", "all")}
    if (name := name_of(node)) in known:
        yield code.end(node) - len(name), code.end(node), known[name]


@rule
def function_dropped(code, node):
    """sqrt(a) -> a, and so for exp, log, tanh, reversed, …"""
    if called(node, UNARY) and node.args:
        yield *code.span(node), f"({code.text(node.args[0])})"


@rule
def argument_negated(code, node):
    """exp(a) -> exp(-a), and so for tanh, sin, …"""
    if called(node, NOT_EVEN) and node.args:
        yield *code.span(node.args[0]), f"-({code.text(node.args[0])})"


@rule
def bound_dropped(code, node):
    """max(a, b) -> a, b, but no number;  clip(a, …) -> a"""
    if called(node, BOUNDS) and isinstance(node.func, ast.Name | ast.Attribute):
        operands = node.args[:1] if called(node, {"clip"}) else node.args
        for operand in operands if len(node.args) > 1 else []:
            if number(operand) is None:
                yield *code.span(node), f"({code.text(operand)})"


@rule
def arguments_swapped(code, node):
    """f(a, b, …) -> f(b, a, …), unless f is known to be symmetric"""
    if called(node) and len(node.args) > 1 and not called(node, EITHER_WAY):
        if not any(isinstance(a, ast.Starred) for a in node.args[:2]):
            yield code.swap(*node.args[:2])


@rule
def option_left_out(code, node):
    """f(…, key=key) -> f(…), but no option that changes only an error's text, speed or memory"""
    handed_on = isinstance(node, ast.keyword) and isinstance(node.parent, ast.Call)
    if handed_on and node.arg not in {None, "out", "dtype", "name", "names"}:
        if isinstance(node.value, ast.Name | ast.Attribute | ast.Subscript):
            start, end = code.span(node)
            before = code.source[:start].rstrip()
            if before.endswith(b","):
                yield len(before) - 1, end, ""
            else:
                yield start, re.compile(rb"\s*,?\s*").match(code.source, end).end(), ""


@rule
def values_swapped(code, node):
    """{"a": x, "b": y} -> {"a": y, "b": x}, for neighbours in a dict"""
    if isinstance(node, ast.Dict):
        for i in range(len(node.values) - 1):
            if node.keys[i] and node.keys[i + 1]:
                yield code.swap(*node.values[i : i + 2])


@rule
def pair_swapped(code, node):
    """return a, b, … -> return b, a, …;  a, b, … = f() -> b, a, … = f();  but no value for a
    backward, for nobody could overlook that"""
    returned = node.value if isinstance(node, ast.Return) else None
    pair = node.targets[0] if isinstance(node, ast.Assign) else returned
    if isinstance(pair, ast.Tuple) and len(pair.elts) > 1:
        callables = ["backward" in code.text(e) or isinstance(e, ast.Lambda) for e in pair.elts]
        if callables[0] == callables[1]:
            yield code.swap(*pair.elts[:2])
