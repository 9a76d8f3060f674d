"""tools/paper.json: the paper's numbers, complete, and adding up to the totals that it prints."""

import json

import pytest
from common import D4RL_IDS, ROOT

PAPER = json.loads((ROOT / "tools/paper.json").read_text())
TABLES = {  # the rows that a printed total adds up, and what its columns are called in them
    "table2_locomotion": ("table2_offline", lambda name: not name.startswith("antmaze"), {}),
    "table2_antmaze": ("table2_offline", lambda name: name.startswith("antmaze"), {}),
    "table3": ("table3_backbones", lambda name: True, {}),
    "table4": ("table4_finetune", lambda name: True, {"TD3": "TD3_online_from_scratch"}),
}


@pytest.mark.parametrize("table", TABLES)
def test_totals(table: str) -> None:
    """Entries have one decimal, so a sum of them may be off by 0.1 from the printed total, and by no
    more."""
    rows, chosen, names = TABLES[table]
    for method, total in PAPER["printed_totals"][table].items():
        entries = [row[names.get(method, method)] for name, row in PAPER[rows].items() if chosen(name)]
        assert sum(entries) == pytest.approx(total, abs=0.15), method
    assert len(PAPER["printed_totals"][table]) >= 4


def test_rows() -> None:
    """Table 2 has all 21 datasets of the scripts, Table 3 the nine of medium quality, Table 4 AntMaze's
    six; Table 4's offline scores are Table 2's."""
    ids = D4RL_IDS
    assert sorted(PAPER["table2_offline"]) == sorted(ids)
    assert sorted(PAPER["table3_backbones"]) == sorted(
        env_id for env_id in ids if "-medium-" in env_id and "ant" not in env_id
    )
    assert sorted(PAPER["table4_finetune"]) == sorted(
        env_id for env_id in ids if env_id.startswith("antmaze")
    )
    for env_id, row in PAPER["table4_finetune"].items():
        assert row["DMG_offline"] == PAPER["table2_offline"][env_id]["DMG"]
        assert row["IQL_offline"] == PAPER["table2_offline"][env_id]["IQL"]
