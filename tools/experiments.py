"""The paper's tables and figures as lists of jobs: which script, dataset and flags each of them needs.

Where the paper's text does not say which datasets or values it used, they are ours: Table 1's scores, the datasets and
grids of Figures 1 and 2, and everything on `-local` data. tools/benchmark.py runs the jobs, tools/report.py reads them.
"""

import functools
import importlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dmg_iql import ANTMAZE, ENV_IDS

ROBOTS = ("halfcheetah", "hopper", "walker2d")  # in the paper's order
QUALITIES = ("medium", "medium-replay", "medium-expert", "expert", "random")


@dataclass(frozen=True)
class Setting:
    """One column of a table or line of a figure: a script and the flags that differ from its defaults."""

    name: str
    """--exp-name of its runs"""
    script: str
    flags: dict[str, float | bool]
    """resolved values by the name of the field in the script's Args"""
    action: str = ""
    """Table 1: how far the policy generalises in actions"""
    propagation: str = ""
    """Table 1: how far the Bellman target does"""


@dataclass(frozen=True)
class Experiment:
    """A table or figure: its datasets on D4RL and on local data, its settings, and how many seeds it averages."""

    title: str
    d4rl: list[str]
    local: list[str]
    settings: list[Setting]
    ours: str = ""
    """which choices the paper's text does not give"""
    seeds: int = 5


@dataclass(frozen=True)
class Job:
    """One process: a setting on a dataset, all seeds together."""

    env_id: str
    setting: Setting
    flags: dict[str, float | int | bool]
    """those of the setting, and number of seeds, iterations and evaluations"""

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.env_id}__{self.setting.name}__s0-{self.flags['num_seeds'] - 1}"

    @property
    def settings(self) -> dict[str, float | int | str]:
        """What config.json of its run has to hold: every setting of the script that changes results, resolved."""
        return resolved(self.setting.script, self.env_id, tuple(self.flags.items()))


@functools.cache
def resolved(script: str, env_id: str, flags: tuple[tuple[str, float | int | bool], ...]) -> dict:
    """All settings that these flags mean to the script, as it writes them into config.json."""
    module = importlib.import_module(script)
    args = vars(module.resolve(module.Args(env_id=env_id, **dict(flags))))
    kept = {key: value for key, value in args.items() if key not in module.MACHINE | {"exp_name"}}
    return {"script": script} | {
        key: value if isinstance(value, int | float) else str(value) for key, value in kept.items()
    }


def tasks(kind: str, qualities: tuple[str, ...] = (), antmaze: bool = False) -> list[str]:
    """The ids of a kind (v2, local) in the paper's order, as far as the scripts know them."""
    ids = [f"{robot}-{quality}-{kind}" for quality in qualities for robot in ROBOTS]
    ids += [f"{task}-{kind}" for task in ANTMAZE] if antmaze else []
    return [env_id for env_id in ids if env_id in ENV_IDS]


def in_sample(name: str, script: str = "dmg_iql") -> Setting:
    """The in-sample ablation of a backbone."""
    return Setting(name, script, {"lam": 0.0, "nu": float("inf")}, "none", "none")


DMG = Setting("DMG", "dmg_iql", {}, "mild", "mild")
ABLATION = in_sample("in-sample-ablation")
AWAC = Setting("AWAC-like", "dmg_iql", {"lam": 1.0, "nu": float("inf")}, "none", "full")
TD3BC = Setting("TD3+BC-like", "dmg_iql", {"lam": 1.0, "nu": 0.4, "temperature": 0.0}, "mild", "full")
TD3 = Setting("TD3-like", "dmg_iql", {"lam": 1.0, "nu": 0.0}, "full", "full")
SCRATCH = Setting("TD3-scratch", "dmg_finetune", {"scratch": True, "lam": 1.0, "nu": 0.0})
# The grids' middle is DMG itself, so that its runs are shared: on medium data the preset of ν is 0.1.
LAMBDAS = [
    Setting("DMG" if lam == 0.25 else f"DMG-lam{lam:g}", "dmg_iql", {"lam": lam, "nu": 0.1})
    for lam in (0.0, 0.25, 0.5, 0.75, 1.0)
]
NUS = [
    Setting("DMG" if nu == 0.1 else f"DMG-nu{nu:g}", "dmg_iql", {"lam": 0.25, "nu": nu})
    for nu in (0.01, 0.03, 0.1, 1.0, 10.0)
]
BACKBONES = [
    in_sample("XQL-ablation", "dmg_xql"),
    Setting("DMG-XQL", "dmg_xql", {}),
    in_sample("SQL-ablation", "dmg_sql"),
    Setting("DMG-SQL", "dmg_sql", {}),
]
FINETUNED = [
    SCRATCH,
    in_sample("in-sample-ablation-finetuned", "dmg_finetune"),
    Setting("DMG-finetuned", "dmg_finetune", {}),
]

MEDIUM = [tasks(kind, ("medium",)) for kind in ("v2", "local")]
MEDIUMS = [tasks(kind, QUALITIES[:3]) for kind in ("v2", "local")]
LOCOMOTION = [tasks(kind, QUALITIES) for kind in ("v2", "local")]
MAZES = [tasks(kind, antmaze=True) for kind in ("v2", "local")]
ALL = [gym + mazes for gym, mazes in zip(LOCOMOTION, MAZES)]
ON_LOCAL = "on local data, locomotion beside AntMaze"
AN_IMAGE = "the datasets, Table 2's: the paper's is an image"

EXPERIMENTS = {
    "table1": Experiment(
        "Table 1: five methods as two flags, with scores",
        *MEDIUM,
        [ABLATION, AWAC, TD3BC, TD3, DMG],
        "the scores, their datasets, and the flags of the settings other than DMG",
    ),
    "table2": Experiment("Table 2: offline scores", *ALL, [ABLATION, DMG]),
    "table3": Experiment("Table 3: DMG on other in-sample maxima", *MEDIUMS, BACKBONES),
    "table4": Experiment(
        "Table 4: online fine-tuning", MAZES[0], MEDIUM[1] + MAZES[1], FINETUNED, f"random steps of TD3; {ON_LOCAL}"
    ),
    "table6": Experiment("Table 6: ten seeds, 95 % confidence intervals", *ALL, [DMG], AN_IMAGE, seeds=10),
    "figure1": Experiment("Figure 1: mixture coefficient λ at ν = 0.1", *MEDIUM, LAMBDAS, "datasets and the grid of λ"),
    "figure2": Experiment("Figure 2: penalty coefficient ν at λ = 0.25", *MEDIUM, NUS, "datasets and the grid of ν"),
    "figure3": Experiment(
        "Figure 3: wall clock",
        ["halfcheetah-medium-replay-v2"],
        ["halfcheetah-medium-replay-local"],
        [replace(setting, name=f"{setting.name}-timed") for setting in (DMG, ABLATION, TD3BC)],
        "which methods, apart from DMG; one job at a time",
        seeds=1,
    ),
    "figure4": Experiment("Figure 4: learning curves on locomotion", *LOCOMOTION, [DMG], AN_IMAGE),
    "figure5": Experiment("Figure 5: learning curves on AntMaze", *MAZES, [DMG], AN_IMAGE),
    "figure6": Experiment(
        "Figure 6: fine-tuning curves", MAZES[0], MEDIUM[1] + MAZES[1], FINETUNED, f"random steps of TD3; {ON_LOCAL}"
    ),
}


def jobs(
    name: str,
    env_ids: list[str],
    seeds: int,
    iterations: int,
    online_steps: int,
    eval_every: int | None = None,
    eval_episodes: int | None = None,
) -> list[Job]:
    """The jobs of an experiment on these datasets. `eval_every` None: the paper's protocol in a run of the paper's
    length or longer, else a tenth of the run, or of the longer one of its two phases."""
    listed = []
    for env_id in env_ids:
        for setting in EXPERIMENTS[name].settings:
            flags = {"num_seeds": seeds, **setting.flags}
            length = iterations
            if setting.script == "dmg_finetune":
                length = online_steps if "scratch" in flags else max(iterations, online_steps)
                flags["online_steps"] = online_steps
                if "scratch" in flags:  # TD3's 25,000 random steps, as a share of a million
                    flags["warmup_steps"] = online_steps // 40
            if "scratch" not in flags:
                flags["iterations"] = iterations
            if eval_every or length < 1_000_000:
                flags["eval_every"] = eval_every or max(1, length // 10)
            if eval_episodes:
                flags["eval_episodes"] = eval_episodes
            flags["save_every"] = min(10_000, max(1, length // 10))
            listed.append(Job(env_id, setting, flags))
    return listed
