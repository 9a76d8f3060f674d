"""README.md and docs/*.md against the repository: what they refer to exists.

 (a) Relative links and images lead to a file, and `file.md#anchor` to one of its headings.
 (b) Paths in code exist: words that begin with tools/, tests/, docs/ or .ci/, and names of .py and .sh
     files, which mean the repository's root. `<name>` in a path stands for anything.
 (c) A --flag behind `python X.py` or `bash benchmark.sh X` is one of that script's, as its dataclass
     Args says; one that stands alone is some script's. Flags of other programs (`pip install --no-deps`)
     are left alone.
 (d) Functions exist. `name()` in code means a function, method or class of the page's script: X.py on
     docs/X.md where there is such a script, dmg_iql.py on all other pages. `path.py: name, Class.name`
     names the file itself. In a table's columns "function" and "place" each code span is such a
     reference, the parentheses being optional, and no cell of "place" is without one.

Code is a span in backticks (also one that goes on in the next line) or a fenced block; python and math
blocks are not read for paths and flags. Each check is a function that lists what is wrong; the second
half makes each of them fail."""

import ast
import fnmatch
import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [path.name for path in sorted(ROOT.glob("dmg_*.py"))]
FENCE = re.compile(r"^( *)(```+) *(\w*) *\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
COMMAND = re.compile(r"(?:^|\s)((?:tools/(?:\w+/)?)?\w+\.py|benchmark\.sh(?: +\w+)?)(?=\s|$)")


# ---- reading Markdown ---------------------------------------------------------------------------------
def spans(text: str) -> list[str]:
    """The code spans of a text without fenced blocks, on one line each; a table's \\| is |."""
    paragraphs = re.split(r"\n\s*\n", FENCE.sub("\n\n", text))
    found = [match[2] for paragraph in paragraphs for match in SPAN.finditer(paragraph)]
    return [" ".join(span.split()).replace(r"\|", "|") for span in found]


def commands(text: str) -> list[str]:
    """Code that may hold commands: spans, and the lines of blocks (not of python and math ones) without
    comments."""
    blocks = [match[4] for match in FENCE.finditer(text) if match[3] not in ("python", "math")]
    lines = [line for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    return spans(text) + [re.sub(r"(^| )#.*", "", line).strip() for line in lines]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*?) *$", FENCE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()).replace(
            " ", "-"
        )
        found.append(slug + (f"-{found.count(slug)}" if slug in found else ""))
    return set(found)


def tables(text: str) -> list[list[dict[str, str]]]:
    """The tables of a page, each a list of rows by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", FENCE.sub("\n", text), re.MULTILINE):
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()
        ]
        found.append([dict(zip(rows[0], row)) for row in rows[2:]])
    return found


# ---- reading the scripts ------------------------------------------------------------------------------
@functools.cache
def parsed(path: str) -> tuple[str, dict[str, ast.AST]]:
    """A Python file's text and its definitions by name: functions, classes and constants; methods and
    fields as name and as Class.name, those of a base class in the file included."""
    text, found = (ROOT / path).read_text(), {}
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.setdefault(node.name, node)
        if isinstance(node, ast.ClassDef):
            bases = [
                found[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in found
            ]
            for item in [item for owner in (node, *bases) for item in owner.body]:
                if isinstance(item, ast.FunctionDef):
                    found[f"{node.name}.{item.name}"] = item
                elif isinstance(item, ast.AnnAssign):
                    found[f"{node.name}.{ast.unparse(item.target)}"] = item
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found |= {name.id: node for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)}
    return text, found


@functools.cache
def flags(path: str) -> frozenset[str]:
    """The flags of a script, as tyro makes them of its dataclass Args: kebab case, and --no-x beside a
    bool's --x."""
    found = {"--help"}
    for name, node in parsed(path)[1].items():
        if (
            name.startswith("Args.")
            and isinstance(node, ast.AnnAssign)
            and "Positional" not in ast.unparse(node)
        ):
            flag = name.removeprefix("Args.").replace("_", "-")
            found |= {f"--{flag}"} | (
                {f"--no-{flag}"} if ast.unparse(node.annotation) == "bool" else set()
            )
    return frozenset(found)


def with_args(*paths: str) -> list[str]:
    """Those of the paths that exist and have Args."""
    return [path for path in paths if (ROOT / path).is_file() and "Args" in parsed(path)[1]]


TOOLS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tools").rglob("*.py"))]
ALL_FLAGS = frozenset().union(*(flags(path) for path in with_args(*SCRIPTS, *TOOLS)))


def subcommands() -> list[str]:
    """The patterns of the names that benchmark.sh knows."""
    labels = re.findall(r"^([a-z][\w\[\]* |-]*)\)", (ROOT / "benchmark.sh").read_text(), re.MULTILINE)
    return [name.strip() for label in labels for name in label.split("|")]


def accepted(command: str) -> frozenset[str] | str | None:
    """The flags of `X.py` or `benchmark.sh X`; None where they are not known, a string where there is no
    such X."""
    if not command.startswith("benchmark.sh"):
        return (
            flags(command) if (ROOT / command).is_file() else None
        )  # missing_paths names a missing script
    name = command.removeprefix("benchmark.sh").strip()
    if not name or name == "test":
        return None  # no flags, or pytest's
    if not any(fnmatch.fnmatch(name, pattern) for pattern in subcommands()):
        return f"benchmark.sh has no {name}"
    tool = {"speed": "tools/speed.py", "gpu": "tools/gpu.py"}.get(name, "tools/reproduce.py")
    return (
        flags("dmg_iql.py")
        if name == "quickstart"
        else frozenset()
        if name == "datasets"
        else flags(tool)
    )


# ---- the checks ---------------------------------------------------------------------------------------
def broken_links(page: Path, text: str) -> list[str]:
    """(a)"""
    wrong, prose = [], SPAN.sub("x", FENCE.sub("\n", text))
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if name and not file.exists():
            wrong.append(f"no file: {target}")
        elif anchor and anchor not in anchors(file.read_text() if name else text):
            wrong.append(f"no heading: {target}")
    return wrong


def missing_paths(page: Path, text: str) -> list[str]:
    """(b)"""
    words = [word.rstrip(".,:;") for code in commands(text) for word in code.split()]
    inside = re.compile(r"(tools|tests|docs|\.ci)/[\w./<>*-]*|[\w-]+\.(py|sh)")
    paths = [re.sub(r"<[^>]*>", "*", word) for word in words if inside.fullmatch(word)]
    return [f"no file: {path}" for path in paths if not any(ROOT.glob(path.rstrip("/")))]


def unknown_flags(page: Path, text: str) -> list[str]:
    """(c)"""
    wrong = []
    for code in commands(text):
        for part in re.split(r"&&|\|\||[;|]", code):
            found = list(COMMAND.finditer(part))
            ends = [*(match.start() for match in found), len(part)]
            alone = part[: ends[0]].strip()
            pieces = [(ALL_FLAGS, "any script", alone)] if alone.startswith("--") else []
            for match, end in zip(found, ends[1:]):
                command = " ".join(match[1].split())
                known = accepted(command)
                wrong += [known] if isinstance(known, str) else []
                pieces += (
                    [(known, command, part[match.end() : end])] if isinstance(known, frozenset) else []
                )
            for known, command, words in pieces:
                given = re.findall(r"(?<![\w-])--[a-z][\w-]*", words)
                wrong += [f"{flag} is no flag of {command}" for flag in given if flag not in known]
    return wrong


def reference(page: Path, span: str, bare: bool = False) -> tuple[str, list[str]] | None:
    """The file and names that a code span refers to, None if it is no reference to a function; `bare`
    without ()."""
    script = page.stem + ".py" if page.stem + ".py" in SCRIPTS else "dmg_iql.py"
    if match := re.fullmatch(r"([\w/]+\.py): ([\w.]+(?:, [\w.]+)*)", span):
        return match[1], match[2].split(", ")
    match = re.fullmatch(r"([A-Za-z_][\w.]*)(\(\))?", span)
    return (script, [match[1]]) if match and (match[2] or bare) else None


def unknown_functions(page: Path, text: str) -> list[str]:
    """(d)"""
    wrong, named = [], [reference(page, span) for span in spans(text)]
    for row in (row for table in tables(text) for row in table):
        cells = {column: spans(row.get(column, "")) for column in ("function", "place")}
        refs = [reference(page, span, bare=True) for column in cells for span in cells[column]]
        wrong += [f"no reference: {row}" for ref in refs if ref is None]
        wrong += [f"no place: {row}"] if "place" in row and not cells["place"] else []
        named += refs
    for path, names in filter(None, named):
        if not (ROOT / path).is_file():
            wrong.append(f"no file: {path}")
        else:
            wrong += [f"{path} has no {name}" for name in names if name not in parsed(path)[1]]
    return sorted(set(wrong))


CHECKS = [broken_links, missing_paths, unknown_flags, unknown_functions]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize("check", CHECKS)
def test_page(check: Callable[[Path, str], list[str]], page: Path) -> None:
    """Nothing is wrong on any page."""
    assert check(page, page.read_text()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_pages(script: str) -> None:
    """Each script's page has the four sections, in order, and names every column and TensorBoard tag
    that the script writes; what dmg_iql.md explains need not be explained again."""
    page = (ROOT / "docs" / script).with_suffix(".md").read_text()
    sections = ["Usage", "Explanation of the logged metrics", "Implementation details", "Results"]
    assert re.findall(r"^## +(.*)", FENCE.sub("", page), re.MULTILINE) == sections
    source, _ = parsed(script)
    tags = set(re.findall(r'"((?:charts|eval)/\w+)"', source))
    tags |= {
        f"losses/{name}" for name in ("value_loss", "qf_loss", "q_values", "v_values", "actor_loss")
    }
    assert len(tags) >= 8
    assert tags <= set(spans(page) + spans((ROOT / "docs/dmg_iql.md").read_text()))


def quoted(page: str) -> list[str]:
    """The lines of the method that the README quotes."""
    (block,) = [
        match[4]
        for match in FENCE.finditer(page)
        if match[3] == "python" and "def critic_loss" in match[4]
    ]
    return [line for line in block.splitlines() if line.strip()]


def test_readme_quotes_the_method() -> None:
    """Every line of the README's code is in dmg_iql.py, in the same order, from the losses to the
    update's end; what is left out there are comments, docstrings and signatures."""
    page, code = (ROOT / "README.md").read_text(), (ROOT / "dmg_iql.py").read_text().splitlines()
    lines = quoted(page)
    places, after = [], 0
    for line in lines:
        assert line in code[after:], f"not in dmg_iql.py, or not in this order: {line}"
        after = code.index(line, after) + 1
        places.append(after)
    left_out = set(range(places[0], places[-1])) - set(places)
    text = "\n".join(code[place - 1] for place in sorted(left_out))
    for needed in ("value_loss(", "critic_loss(", "actor_loss(", ".descend(", "lerp_"):
        assert needed in "\n".join(lines) and f"def {needed}" not in text
    assert len(page.splitlines()) <= 150


def test_fork_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Callable, iql: ModuleType
) -> None:
    """The page's code that loads a checkpoint and acts runs as it stands, with the return of the agent
    that was saved, computed here layer by layer."""
    text = (ROOT / "docs/fork.md").read_text()
    code = next(match[4] for match in FENCE.finditer(text) if "torch.load" in match[4])
    run_dir = tmp_path / "runs/quickstart"
    iql.train(job(iql, iterations=4, eval_every=4, exp_name="DMG", num_seeds=2, run_dir=run_dir))
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    saved = found["saved"]
    layers = [
        [saved["agent"][f"actor.layers.{i}.{name}"][0].numpy() for name in ("weight", "bias")]
        for i in range(3)
    ]
    env, total, over = gymnasium.make("Hopper-v4"), 0.0, False
    state, _ = env.reset(seed=0)
    while not over:
        x = ((state - np.array(saved["mean"])) / np.array(saved["std"])).astype(np.float32)
        for layer, (weight, bias) in enumerate(layers):
            x = x @ weight + bias[0]
            x = np.maximum(x, 0) if layer < 2 else np.tanh(x)
        state, reward, terminated, truncated, _ = env.step(x)
        total, over = total + reward, terminated or truncated
    np.testing.assert_allclose(found["total"], total, rtol=1e-3)
    assert len(code.splitlines()) <= 20


# ---- the checks can fail ------------------------------------------------------------------------------
BROKEN = [
    (broken_links, "[a](missing.md)", "no file: missing.md"),
    (broken_links, "![a picture](missing.png)", "no file: missing.png"),
    (
        broken_links,
        "[`dmg_iql.py`](dmg_iql.py)",
        "no file: dmg_iql.py",
    ),  # from docs/ it is one folder up
    (broken_links, "[a](../README.md#no-such-heading)", "no heading: ../README.md#no-such-heading"),
    (broken_links, "# One heading\n\n[a](#other-heading)", "no heading: #other-heading"),
    (missing_paths, "see `tools/missing.py`", "no file: tools/missing.py"),
    (
        missing_paths,
        "see `tests/test_theory.py` and\n`tests/test_missing.py`",
        "no file: tests/test_missing.py",
    ),
    (missing_paths, "see `tools/data/behaviours/<robot>.csv`", "no file: tools/data/behaviours/*.csv"),
    (missing_paths, "```bash\npython dmg_ppo.py\n```", "no file: dmg_ppo.py"),
    (missing_paths, "a span over `python\ntools/missing.py` two lines", "no file: tools/missing.py"),
    (unknown_flags, "`python dmg_iql.py --beta 5`", "--beta is no flag of dmg_iql.py"),  # dmg_xql.py's
    (unknown_flags, "`python dmg_iql.py --num_seeds 5`", "--num_seeds is no flag of dmg_iql.py"),
    (unknown_flags, "`python dmg_iql.py --no-lam`", "--no-lam is no flag of dmg_iql.py"),
    (
        unknown_flags,
        "```bash\npython dmg_sql.py --seed 1 \\\n    --beta 2\n```",
        "--beta is no flag of dmg_sql.py",
    ),
    (
        unknown_flags,
        "```bash\npython dmg_iql.py && python tools/report.py --lam 1\n```",
        "--lam is no flag of tools/rep",
    ),
    (unknown_flags, "`bash benchmark.sh speed --lam 1`", "--lam is no flag of benchmark.sh speed"),
    (
        unknown_flags,
        "`bash benchmark.sh datasets --seeds 3`",
        "--seeds is no flag of benchmark.sh datasets",
    ),
    (unknown_flags, "`bash benchmark.sh slowstart`", "benchmark.sh has no slowstart"),
    (unknown_flags, "`--lamda 0.5`", "--lamda is no flag of any script"),
    (unknown_functions, "`no_such_loss()`", "dmg_iql.py has no no_such_loss"),
    (unknown_functions, "`dmg_iql.py: critic_loss, no_such_loss`", "dmg_iql.py has no no_such_loss"),
    (unknown_functions, "`dmg_iql.py: Args.beta`", "dmg_iql.py has no Args.beta"),
    (unknown_functions, "`dmg_ppo.py: critic_loss`", "no file: dmg_ppo.py"),
    (
        unknown_functions,
        "| a | place |\n|---|---|\n| x | `no_such_loss` |\n",
        "dmg_iql.py has no no_such_loss",
    ),
    (unknown_functions, "| a | place |\n|---|---|\n| x | somewhere |\n", "no place: "),
    (unknown_functions, "| a | function |\n|---|---|\n| x | `2 + 2` |\n", "no reference: "),
]


@pytest.mark.parametrize("check, text, wanted", BROKEN)
def test_broken_reference_is_found(
    check: Callable[[Path, str], list[str]], text: str, wanted: str
) -> None:
    """A page with one broken reference: the check names it, and nothing else."""
    (found,) = check(ROOT / "docs/made_up.md", text)
    assert found.startswith(wanted)


def test_script_of_a_page() -> None:
    """On docs/dmg_finetune.md, functions are dmg_finetune.py's: `schedule()` is one there, not in
    dmg_iql.py."""
    assert unknown_functions(ROOT / "docs/dmg_finetune.md", "`schedule()`") == []
    assert unknown_functions(ROOT / "docs/learn.md", "`schedule()`") == ["dmg_iql.py has no schedule"]


@pytest.mark.parametrize(
    "text",
    [
        "[a](https://example.org/x.md) [b](../README.md#the-method) [c](learn.md) `[d](missing.md)`",
        "`runs/x/eval.csv`, `config.json`, `tools/data/behaviours/<robot>.json`",
        "```python\nimport missing  # python missing.py --lamda\n```\n\n```math\nx --y\n```",
        "`pip install --no-deps d4rl==1.1`, `--no-resume`, `python dmg_xql.py --beta 5 --no-resume`",
        "`MUJOCO_GL=egl python tools/antmaze/speed.py --picture x.png`, `bash benchmark.sh speed`",
        "`DMG.update()`, `dmg_finetune.py: Player.step, schedule`, `f(x)`",
    ],
)
def test_good_references_pass(text: str) -> None:
    """What is right, or is none of the checks' business, is not complained about."""
    assert [wrong for check in CHECKS for wrong in check(ROOT / "docs/made_up.md", text)] == []
