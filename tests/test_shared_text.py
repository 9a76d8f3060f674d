"""The four scripts are one text: what they share is the same to the letter, in the same order. What may
differ is listed here, and nothing else does. They keep to their limits, and each stands alone."""

import ast
import difflib
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

LIMITS = {  # lines and tokens
    "dmg_iql.py": (480, 4_700),
    "dmg_xql.py": (480, 4_700),
    "dmg_sql.py": (480, 4_700),
    "dmg_finetune.py": (600, 6_000),
}
COLUMNS = 105


@dataclass
class Own:
    """What a script has of its own."""

    pieces: dict[str, int]  # top-level pieces of another text: at most so many lines removed or added
    more: set[str]  # pieces that dmg_iql.py lacks
    flags: dict[str, list[str]]  # flags of dmg_iql.py that differ, and what stands in their place


MAXIMUM = {"the title": 4, "the symbols": 2}
ONLINE_FLAGS = """iterations checkpoint scratch warmup_steps exploration_noise buffer_size lam_online
nu_online decay decay_every""".split()
MAY_DIFFER = {
    "dmg_xql.py": Own(
        MAXIMUM | {"resolve": 8, "value_loss": 9}, set(), {"expectile": ["beta", "gumbel_clip"]}
    ),
    "dmg_sql.py": Own(MAXIMUM | {"resolve": 9, "value_loss": 8}, set(), {"expectile": ["alpha"]}),
    "dmg_finetune.py": Own(
        {
            "the title": 8,
            "from torch.optim": 2,
            "MAY_CHANGE": 2,
            "resolve": 12,
            "DMG": 2,
            "random_seeds": 3,
        }
        | {"draw_block": 18, "train": 109},
        {"buffer_rows", "schedule", "Player", "load_offline"},
        {key: [key] for key in ("env_id", "gamma", "learning_rate")} | {"iterations": ONLINE_FLAGS},
    ),
}


def text_of(script: str) -> str:
    return (ROOT / script).read_text(encoding="utf-8")


def pieces(text: str) -> dict[str, str]:
    """A script's top level by name, in order: each piece's text with the comments above it. The header
    is four pieces: the metadata, and the docstring's three paragraphs."""
    lines, found, end = text.splitlines(), {}, 0
    header, *nodes = ast.parse(text).body
    start = header.lineno - 1
    found["the metadata"] = "\n".join(lines[:start])
    paragraphs = "\n".join(lines[start : header.end_lineno]).split("\n\n")
    found |= zip(("the title", "the symbols", "the departures"), paragraphs, strict=True)
    end = header.end_lineno
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
        elif isinstance(node, ast.ImportFrom):
            name = f"from {node.module}"
        else:
            name = ast.unparse(node).splitlines()[0]
        found[name] = "\n".join(lines[end : node.end_lineno]).strip("\n")
        end = node.end_lineno
    return found


def flags(piece: str) -> dict[str, str]:
    """The lines of Args by flag; what stands around them as "the head"."""
    found: dict[str, str] = {}
    for line in piece.splitlines():
        flag = re.match(r"    (\w+): .* = ", line)
        name = flag[1] if flag else "the head"
        found[name] = found.get(name, "") + line + "\n"
    return found


def changed(one: str, other: str) -> list[str]:
    """The lines that go and come between two texts, marked - and +."""
    difference = difflib.unified_diff(one.splitlines(), other.splitlines(), lineterm="", n=0)
    return [line for line in list(difference)[2:] if not line.startswith("@@")]


def drift(one: str, other: str, own: Own) -> list[str]:
    """What differs between two scripts' texts beyond what may, by name."""
    ours, theirs = (
        pieces(one),
        {name: text for name, text in pieces(other).items() if name not in own.more},
    )
    wrong = [f"order: {a} / {b}" for a, b in zip(ours, theirs) if a != b][:1]
    wrong += [f"only in one: {name}" for name in set(ours) ^ set(theirs)]
    a, b = flags(ours.pop("Args")), flags(theirs.pop("Args"))
    if list(b) != [flag for name in a for flag in own.flags.get(name, [name])]:
        wrong.append(f"Args: {list(b)}")
    shared = (set(a) & set(b)) - set(own.flags)
    wrong += [f"Args.{name}: {a[name]}{b[name]}" for name in shared if a[name] != b[name]]
    for name in set(ours) & set(theirs):
        lines = changed(ours[name], theirs[name])
        if len(lines) > own.pieces.get(name, 0):
            wrong.append("\n".join([f"{name}: {len(lines)} lines", *lines]))
    return wrong


@pytest.mark.parametrize("script", MAY_DIFFER)
def test_one_text(script: str) -> None:
    """Beside its title, the in-sample maximum or the online phase, and their flags, a script is
    dmg_iql.py's text. The list of what may differ is no longer than it has to be."""
    own = MAY_DIFFER[script]
    one, other = text_of("dmg_iql.py"), text_of(script)
    assert drift(one, other, own) == []
    for name in own.pieces:
        assert pieces(one)[name] != pieces(other)[name], name
    assert own.more == set(pieces(other)) - set(pieces(one))


MUTATIONS = [  # a text in the scripts, what it becomes, and the name under which that is found
    ("lam * q2 + (1 - lam) * v2", "(1 - lam) * q2 + lam * v2", "critic_loss: 2 lines"),
    ("# Eq. 16 (its target: Eq. 6)", "# Eq. 17", "critic_loss: 2 lines"),
    ("polyak: float = 0.005", "polyak: float = 0.01", "Args.polyak"),
    ("    seed: int = 0  # first seed, >= 0\n", "", "Args: ['the head'"),
    ('    """Train DMG. Flags', '    """Train on a dataset', "Args.the head"),
    ("BLOCK = 1_000", "BLOCK = 2_000", "BLOCK: 2 lines"),
    ("import h5py\nimport numpy as np\n", "import numpy as np\nimport h5py\n", "order: import h5py / "),
    ("import json\n", "", "only in one: import json"),
    ("def rollout", "def play", "only in one: rollout"),
    ('startswith("antmaze-")', 'startswith("maze-")', "resolve: "),
    ('write_file(folder / "done", summary', 'write_file(folder / "done", name', "train: "),
    ("    train(tyro.cli(Args))", "    train(Args())", "if __name__"),
    ("    V_ψ           value", "    V             value", "the symbols: "),
    (" 6 There is no", " 6 Nothing comes after", "the departures: 2 lines"),
    ("torch==2.13.0", "torch==2.12.0", "the metadata: 2 lines"),
]


@pytest.mark.parametrize("script", MAY_DIFFER)
@pytest.mark.parametrize("old, new, named", MUTATIONS)
def test_drift_is_named(script: str, old: str, new: str, named: str) -> None:
    """A change of shared text is found, under its name, also in a piece that differs otherwise."""
    other = text_of(script)
    assert other.count(old) >= 1
    found = drift(text_of("dmg_iql.py"), other.replace(old, new, 1), MAY_DIFFER[script])
    assert any(line.startswith(named) for line in found), found


@pytest.mark.parametrize(
    "script, old, new",
    [
        ("dmg_xql.py", "beta: float = 5.0", "beta: float = 2.0"),
        ("dmg_xql.py", "u / args.beta", "u / 2 / args.beta"),
        ("dmg_sql.py", 'preset["alpha"] = 5.0', 'preset["alpha"] = 10.0'),
        ("dmg_finetune.py", "lam_online: float | None", "lam_online: float"),
        ("dmg_finetune.py", "self.length += 1", "self.length += 2"),
    ],
)
def test_own_text_is_free(script: str, old: str, new: str) -> None:
    """A change of what is a script's own is no drift."""
    other = text_of(script)
    assert other.count(old) == 1
    assert drift(text_of("dmg_iql.py"), other.replace(old, new), MAY_DIFFER[script]) == []


NO_TOKENS = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER"}


def count_tokens(text: str) -> int:
    """Python tokens but comments, line ends and indents. An f-string is one, as before Python 3.12."""
    count = inside = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        inside -= name == "FSTRING_END"
        count += not inside and name not in NO_TOKENS and name != "FSTRING_END"
        inside += name == "FSTRING_START"
    return count


def test_count_tokens() -> None:
    """def f ( x ) : "docstring" return f-string + string, and f-strings in f-strings."""
    text = 'def f(x):  # why\n    """What."""\n\n    return f"{x + 1} {x!r:>{x}}" + "c"\n'
    assert count_tokens(text) == 11
    assert count_tokens("""y = f"{f'{x}' + 'a'} b"\n""") == 3


@pytest.mark.parametrize("script", LIMITS)
def test_limits(script: str) -> None:
    """No script has more lines, tokens or columns than a reader can be asked to read."""
    text, (lines, tokens) = text_of(script), LIMITS[script]
    assert len(text.splitlines()) <= lines
    assert count_tokens(text) <= tokens
    assert max(map(len, text.splitlines())) <= COLUMNS


@pytest.mark.parametrize("script", ["dmg_xql.py", "dmg_sql.py"])
def test_diff_is_short(script: str) -> None:
    """`diff dmg_iql.py dmg_xql.py` shows another in-sample maximum and little else."""
    assert 0 < len(changed(text_of("dmg_iql.py"), text_of(script))) <= 60


@pytest.mark.parametrize("script", LIMITS)
def test_metadata(script: str) -> None:
    """The inline metadata (PEP 723) is TOML and pins each package that the script imports, as
    requirements.txt does."""
    (block,) = re.findall(r"(?m)^# /// script$\n((?:^#(?:| .*)$\n)+?)^# ///$", text_of(script))
    metadata = tomllib.loads("".join(line[2:] or "\n" for line in block.splitlines(keepends=True)))
    assert metadata["requires-python"] == ">=3.11"
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    assert set(metadata["dependencies"]) <= set(requirements)
    names = {pin.split("==")[0] for pin in metadata["dependencies"]}
    assert len(names) == len(metadata["dependencies"])
    imported = {name.split(".")[0] for name in imports(script)} - sys.stdlib_module_names
    assert names == imported | {"tensorboard", "mujoco", "imageio"}  # which torch and gymnasium import


def imports(script: str) -> set[str]:
    """The modules that a script imports, anywhere in it, by an import statement."""
    found = set()
    for node in ast.walk(ast.parse(text_of(script))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("script", LIMITS)
def test_script_stands_alone(script: str) -> None:
    """A script imports nothing of this repository, but for antmaze.py by name inside functions."""
    of_the_repository = {path.stem for path in ROOT.glob("*.py")}
    of_the_repository |= {path.stem for path in ROOT.glob("t*/**/*.py")} | {"tools", "tests"}
    assert {name.split(".")[0] for name in imports(script)}.isdisjoint(of_the_repository)
    tree = ast.parse(text_of(script))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    by_name = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "import_module"]
    assert set(by_name) == {"import_module('antmaze')"}
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            assert "import_module(" not in ast.unparse(node)


IMPORT = """
import os, sys
import gymnasium, h5py, huggingface_hub, numpy, torch, torch.utils.tensorboard, tyro
state = lambda: (dict(os.environ), sys.argv[:], torch.get_num_threads(), torch.get_default_dtype(),
    torch.initial_seed(), numpy.random.get_state()[1].tolist(), gymnasium.logger.min_level)
before = state()
import dmg_iql, dmg_xql, dmg_sql, dmg_finetune
assert state() == before
"""


def test_import_does_nothing(tmp_path: Path) -> None:
    """Importing the scripts, without the rest of the repository, reads no flags, prints nothing, writes
    nothing to the working or home folder, and changes no setting of the process."""
    work, home, alone = (tmp_path / name for name in ("work", "home", "alone"))
    for folder in (work, home, alone):
        folder.mkdir()
    for script in LIMITS:
        shutil.copy(ROOT / script, alone)
    env = os.environ | {"PYTHONPATH": str(alone), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-c", IMPORT, "--nonsense", "--lam", "7"]
    done = subprocess.run(words, cwd=work, env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(work.iterdir()) == list(home.iterdir()) == []
