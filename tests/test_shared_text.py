"""The scripts are one text: what they share is the same to the letter, in the same order. What may differ is listed
here, and nothing else does."""

import ast
import difflib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_DIFFER = {  # script: the definitions that are its own, and the flags that it adds; all of them drop `expectile`
    "dmg_xql.py": ({"value_loss", "preset", "CHECKS"}, ["beta", "gumbel_clip"]),
    "dmg_sql.py": ({"value_loss", "actor_loss", "preset", "CHECKS"}, ["alpha", "sparse_weights"]),
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
        name = "the header" if not found else name
        found[name] = "\n".join(lines[end : node.end_lineno]).strip("\n")
        end = node.end_lineno
    del found["the header"]
    return found


def flags(piece: str) -> dict[str, str]:
    """The lines of class Args by flag; what stands above them as "docstring"."""
    found: dict[str, str] = {}
    for line in piece.splitlines():
        name = line.strip().split(":")[0] if line.startswith("    ") and ": " in line and " = " in line else "docstring"
        found[name] = found.get(name, "") + line + "\n"
    return found


def drift(one: str, other: str, own: set[str], new_flags: list[str]) -> list[str]:
    """What differs between two scripts' texts beyond what may, by name."""
    ours, theirs = pieces(one), pieces(other)
    wrong = [f"order: {a} / {b}" for a, b in zip(ours, theirs) if a != b][:1]
    wrong += [f"only in one: {name}" for name in set(ours) ^ set(theirs)]
    for name in set(ours) & set(theirs) - own - {"Args"}:
        if ours[name] != theirs[name]:
            lines = difflib.unified_diff(ours[name].splitlines(), theirs[name].splitlines(), lineterm="", n=0)
            wrong.append(f"{name}:\n" + "\n".join(list(lines)[2:]))
    a, b = flags(ours["Args"]), flags(theirs["Args"])
    if list(b) != [flag for name in a for flag in (new_flags if name == "expectile" else [name])]:
        wrong.append(f"Args: {list(b)}")
    wrong += [f"Args.{name}: {a[name]}{b[name]}" for name in a if name in b and a[name] != b[name]]
    return wrong


@pytest.mark.parametrize("script", MAY_DIFFER)
def test_one_text(script: str) -> None:
    """Beside the header, the in-sample maximum and its flags, a script is the text of dmg_iql.py."""
    own, new_flags = MAY_DIFFER[script]
    one, other = (ROOT / "dmg_iql.py").read_text(), (ROOT / script).read_text()
    assert drift(one, other, own, new_flags) == []
    for name in own:  # or the list above is longer than it has to be
        assert pieces(one)[name] != pieces(other)[name], name


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
        ("sys.exit(train(tyro.cli(Args)))", "train(tyro.cli(Args))", "if __name__"),
        ("def attend", "def follow", "attend"),
    ],
)
def test_drift_is_named(script: str, old: str, new: str, named: str | None) -> None:
    """A change of shared text is found, under its name; a change of what is a script's own is not."""
    own, new_flags = MAY_DIFFER[script]
    one, other = (ROOT / "dmg_iql.py").read_text(), (ROOT / script).read_text()
    assert old in other
    found = drift(one, other.replace(old, new), own, new_flags)
    assert (named is None and found == []) or any(named in line for line in found)
