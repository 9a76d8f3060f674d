"""The scripts are one text: what they share is the same to the letter, in the same order. What may differ is listed
here, and nothing else does."""

import ast
import difflib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Own:
    """What a script has of its own."""

    text: set[str]  # definitions of another text
    more: set[str]  # definitions that dmg_iql.py lacks
    flag: str  # the flag of dmg_iql.py that differs,
    flags: list[str]  # and what stands in its place


MAY_DIFFER = {
    "dmg_xql.py": Own({"value_loss", "preset", "CHECKS"}, set(), "expectile", ["beta", "gumbel_clip"]),
    "dmg_sql.py": Own(
        {"value_loss", "actor_loss", "preset", "CHECKS"}, set(), "expectile", ["alpha", "sparse_weights"]
    ),
    "dmg_finetune.py": Own(
        {"preset", "CHECKS", "MACHINE", "resolve", "TABLES", "train", "from dataclasses"},
        {"import mujoco", "draw_online", "online_rows", "schedule", "Collector", "offline_seeds"},
        "iterations",
        "iterations checkpoint scratch online_steps warmup_steps exploration_noise buffer_size lam_online nu_online "
        "decay decay_every gamma_online".split(),
    ),
}


def pieces(text: str) -> dict[str, str]:
    """A script's top level by name, in order: each piece's text with the comments above it. The header is left out."""
    lines, found, end = text.splitlines(), {}, 0
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
        else:
            name = ast.unparse(node).splitlines()[0][:60]
            name = "from dataclasses" if name.startswith("from dataclasses") else name
        name = "the header" if not found else name
        found[name] = "\n".join(lines[end : node.end_lineno]).strip("\n")
        end = node.end_lineno
    del found["the header"]
    return found


GROUPS = ("Task", "Method", "Training", "Run", "Machine", "Args")  # the classes that hold the flags


def flags(script: dict[str, str]) -> dict[str, str]:
    """The lines of these classes by flag; what stands around them as "docstring"."""
    found: dict[str, str] = {}
    piece = "\n".join(script[name] for name in GROUPS)
    for line in piece.splitlines():
        name = line.strip().split(":")[0] if line.startswith("    ") and ": " in line and " = " in line else "docstring"
        found[name] = found.get(name, "") + line + "\n"
    return found


def drift(one: str, other: str, own: Own) -> list[str]:
    """What differs between two scripts' texts beyond what may, by name."""
    ours, theirs = pieces(one), {name: text for name, text in pieces(other).items() if name not in own.more}
    wrong = [f"order: {a} / {b}" for a, b in zip(ours, theirs) if a != b][:1]
    wrong += [f"only in one: {name}" for name in set(ours) ^ set(theirs)]
    for name in set(ours) & set(theirs) - own.text - set(GROUPS):
        if ours[name] != theirs[name]:
            lines = difflib.unified_diff(ours[name].splitlines(), theirs[name].splitlines(), lineterm="", n=0)
            wrong.append(f"{name}:\n" + "\n".join(list(lines)[2:]))
    a, b = flags(ours), flags(theirs)
    if list(b) != [flag for name in a for flag in (own.flags if name == own.flag else [name])]:
        wrong.append(f"Args: {list(b)}")
    wrong += [f"Args.{name}: {a[name]}{b[name]}" for name in a if name in b and name != own.flag and a[name] != b[name]]
    return wrong


@pytest.mark.parametrize("script", MAY_DIFFER)
def test_one_text(script: str) -> None:
    """Beside the header, the in-sample maximum or the online phase, and their flags, a script is dmg_iql.py's text."""
    own = MAY_DIFFER[script]
    one, other = (ROOT / "dmg_iql.py").read_text(), (ROOT / script).read_text()
    assert drift(one, other, own) == []
    for name in own.text:  # or the list above is longer than it has to be
        assert pieces(one)[name] != pieces(other)[name], name
    assert own.more <= set(pieces(other)) - set(pieces(one))


@pytest.mark.parametrize("script", MAY_DIFFER)
@pytest.mark.parametrize(
    "old, new, named",
    [
        ("lam * q2 + (1 - lam) * v2", "(1 - lam) * q2 + lam * v2", "critic_loss"),
        ("# Eq. 16 (and Eq. 6, on samples)", "# Eq. 17", "critic_loss"),
        ("gamma: float = 0.99", "gamma: float = 0.995", "Args.gamma"),
        ("BLOCK = 1_000", "BLOCK = 2_000", "BLOCK"),
        ("import csv\n", "", "only in one: import csv"),
        ("finite, 0 or more", "finite and 0 or more", None),
        ('    """Train DMG on an offline dataset', '    """Train on an offline dataset', "Args.docstring"),
        ("sys.exit(train(command_line()))", "train(command_line())", "if __name__"),
        ("def attend", "def follow", "attend"),
    ],
)
def test_drift_is_named(script: str, old: str, new: str, named: str | None) -> None:
    """A change of shared text is found, under its name; a change of what is a script's own is not."""
    own = MAY_DIFFER[script]
    one, other = (ROOT / "dmg_iql.py").read_text(), (ROOT / script).read_text()
    assert old in other
    found = drift(one, other.replace(old, new), own)
    assert (named is None and found == []) or any(named in line for line in found)
