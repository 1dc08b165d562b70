"""Rules that no type checker knows: how data is loaded, how programs are started, and who may change a job's status."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("app", "stillhouse", "worker", "migrations", "bench", "examples")
PRODUCT = ("app", "stillhouse", "worker")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST_FILE = 400
THE_ONE_PLACE = ROOT / "app" / "jobs" / "moves.py"
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

Rule = Callable[[ast.AST], bool]


def no_shell(node: ast.AST) -> bool:
    """Text that a shell reads is text that can be made to say something else."""
    started_by_name = isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.system", "os.popen"}
    by_function = isinstance(node, ast.Attribute) and node.attr == "create_subprocess_shell"
    return has_keyword(node, "shell", True) or started_by_name or by_function


def no_pickle(node: ast.AST) -> bool:
    """A pickle is a program."""
    if isinstance(node, ast.Import):
        return any(name.name.split(".")[0] in UNPICKLERS for name in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] in UNPICKLERS
    return has_keyword(node, "allow_pickle", True)


def torch_load_takes_weights_only(node: ast.AST) -> bool:
    """Without the flag, `torch.load` runs what it loads."""
    is_load = isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    return is_load and not has_keyword(node, "weights_only", True)


def no_remote_code(node: ast.AST) -> bool:
    """A model's own code is a stranger's program."""
    return has_keyword(node, "trust_remote_code", True)


def status_changes_in_one_place(node: ast.AST) -> bool:
    """A status that is set anywhere else escapes the table of legal moves, the fence and the event."""
    match node:
        case ast.Assign(targets=targets):
            return any(is_status_of_a_job(target) for target in targets)
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            return is_status_of_a_job(target)
        case ast.Call(func=ast.Attribute(attr="values", value=statement), keywords=keywords):
            return updates_jobs(statement) and any(word.arg == "status" for word in keywords)
        case ast.Constant(value=str(text)):
            return re.search(r"\bupdate\s+jobs\s+set\b.*\bstatus\s*=", text, re.IGNORECASE | re.DOTALL) is not None
    return False


def is_status_of_a_job(target: ast.AST) -> bool:
    return (
        isinstance(target, ast.Attribute)
        and target.attr == "status"
        and ast.unparse(target.value).lower().endswith("job")
    )


def updates_jobs(statement: ast.AST) -> bool:
    calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return any(ast.unparse(call) in {"update(JobRow)", "update(JobRow.__table__)"} for call in calls)


def has_keyword(node: ast.AST, name: str, value: object) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return any(
        word.arg == name and isinstance(word.value, ast.Constant) and word.value.value == value
        for word in node.keywords
    )


TENSOR_ROOMS = ("losses", "kernels", "metrics", "optimizers")
SHAPE = re.compile(
    r"""\(\w+,[^()]*\)            # (N,), (N, C), (B, ...)
      | \([.…]+,?[^()]*\)         # (..., C)
      | \(\w+(?:\ \w+)+,[^()]*\) # (N S, H)
      | \bscalars?\b | \bshape\b""",
    re.VERBOSE,
)


def tensor_function_without_shapes(node: ast.AST) -> bool:
    """A public function that takes tensors says of which shapes, or `See` where that is written down."""
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
        return False
    if any("triton" in ast.unparse(by) for by in node.decorator_list):  # their arguments are pointers and blocks
        return False
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    kinds = [ast.unparse(each.annotation) for each in arguments if each.annotation is not None]
    text = ast.get_docstring(node) or ""
    takes_tensors = any(re.search(r"\bTensor\b", kind) for kind in kinds)
    return takes_tensors and not SHAPE.search(text) and not text.startswith("See `")


def public_scopes(tree: ast.Module) -> Iterator[ast.AST]:
    """Functions of a module and methods of its public classes."""
    for node in tree.body:
        yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from node.body


def offences(rule: Rule, source: str) -> Iterator[int]:
    """Lines that break a rule."""
    return (getattr(node, "lineno", 0) for node in ast.walk(ast.parse(source)) if rule(node))


RULES = [no_shell, no_pickle, torch_load_takes_weights_only, no_remote_code, status_changes_in_one_place]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_sources_keep_the_rule(rule: Rule) -> None:
    exempt = {THE_ONE_PLACE} if rule is status_changes_in_one_place else set()
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        if path not in exempt
        for line in offences(rule, path.read_text())
    ]
    assert not found, rule.__doc__


@pytest.mark.parametrize("room", TENSOR_ROOMS)
def test_public_functions_name_the_shapes_of_their_tensors(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for path in sorted((ROOT / "worker" / room).rglob("*.py"))
        for node in public_scopes(ast.parse(path.read_text()))
        if tensor_function_without_shapes(node)
    ]
    assert not found, tensor_function_without_shapes.__doc__


def test_no_two_classes_have_one_name() -> None:
    """The synchronous client is made from the asynchronous one; benches and examples stand alone."""
    names = Counter(
        node.name
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in PRODUCT and "synchronous" not in path.parts
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, times in names.items() if times > 1] == []


def test_no_file_is_long() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in [*SOURCES, *TESTS]}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_the_rule_about_status_knows_how_the_one_place_writes_it() -> None:
    assert list(offences(status_changes_in_one_place, THE_ONE_PLACE.read_text()))


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (no_shell, "subprocess.run(text, shell=True)"),
        (no_shell, "os.system(text)"),
        (no_shell, "await asyncio.create_subprocess_shell(text)"),
        (no_pickle, "import pickle"),
        (no_pickle, "import torch, joblib.externals"),
        (no_pickle, "from pickle import loads"),
        (no_pickle, "numpy.load(path, allow_pickle=True)"),
        (torch_load_takes_weights_only, "torch.load(path)"),
        (torch_load_takes_weights_only, "torch.load(path, weights_only=False)"),
        (no_remote_code, "AutoModel.from_pretrained(path, trust_remote_code=True)"),
        (tensor_function_without_shapes, "def f(x: Tensor) -> Tensor:\n    'Rows (of x) that count.'"),
        (tensor_function_without_shapes, "def f(x: int, *, y: Tensor | None = None) -> None: ..."),
        (status_changes_in_one_place, "job.status = Status.FAILED"),
        (status_changes_in_one_place, "self.job.status: Status = Status.FAILED"),
        (status_changes_in_one_place, "update(JobRow).where(JobRow.id == i).values(step=1, status='failed')"),
        (status_changes_in_one_place, "text('UPDATE jobs SET step = 1, status = :s')"),
    ],
)
def test_a_rule_finds_its_breach(rule: Rule, source: str) -> None:
    assert list(offences(rule, source))


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (no_shell, "subprocess.run(words, shell=False)"),
        (no_pickle, "import pickletools_of_ours\nnumpy.load(path, allow_pickle=False)"),
        (torch_load_takes_weights_only, "torch.load(path, weights_only=True)"),
        (tensor_function_without_shapes, "def f(x: Tensor) -> Tensor:\n    'Mean of rows (N, C).'"),
        (tensor_function_without_shapes, "def f(x: Tensor) -> Tensor:\n    'See `Base`.'"),
        (tensor_function_without_shapes, "def _f(x: Tensor) -> Tensor: ..."),
        (status_changes_in_one_place, "upload.status = 'complete'"),
        (status_changes_in_one_place, "update(JobRow).values(step=1).where(JobRow.status == 'running')"),
        (status_changes_in_one_place, "JobRow(id=i, status=Status.VALIDATING)"),
    ],
)
def test_a_rule_lets_the_rest_pass(rule: Rule, source: str) -> None:
    assert not list(offences(rule, source))
