"""antmaze.py beside its source: d4rl 1.1's own AntMaze classes, run on today's MuJoCo, are the oracle
for the maze, the physics, reward, end, start and goal. tools/antmaze/replay.py on files made here:
rounding passes, other physics shows."""

import functools
import hashlib
import importlib.util
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import collect
import gymnasium
import h5py
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy import stats

import antmaze
from antmaze import AntMazeEnv

ROOT = Path(antmaze.__file__).parent
sys.path.append(str(ROOT / "tools" / "antmaze"))
import replay

MAPS = [
    f"{size}_MAZE{kind}"
    for size in ("U", "BIG", "HARDEST")
    for kind in ("", "_TEST", "_EVAL", "_EVAL_TEST")
]
TEST_MAPS = {"umaze": "U_MAZE_TEST", "medium": "BIG_MAZE_TEST", "large": "HARDEST_MAZE_TEST"}
DRAWS = 2000


# ---- the oracle ---------------------------------------------------------------------------------------
class Oracle(SimpleNamespace):
    """d4rl: its locomotion modules ant and maze_env, and registered, the arguments of its register(...)
    calls by id."""

    def maps(self) -> dict[str, list[list[int | str]]]:
        return {name: value for name, value in vars(self.maze_env).items() if "_MAZE" in name}

    def rows(self, name: str) -> list[str]:
        """One of d4rl's maps in antmaze.py's symbols."""
        symbols = {1: "#", 0: " ", "r": "S", "g": "G"}
        return ["".join(symbols[cell] for cell in row) for row in self.maps()[name]]

    def make(self, maze_map: list[list[int | str]], **changes: object) -> object:
        """d4rl's environment, with the arguments of its v2 ids where `changes` has no others."""
        v2 = dict(
            reward_type="sparse", non_zero_reset=False, eval=True, maze_size_scaling=4.0, v2_resets=True
        )
        return self.ant.make_ant_maze_env(maze_map=maze_map, **(v2 | changes))


def of_d4rl() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in ("d4rl", "mujoco_py")]


@pytest.fixture(scope="session")
def d4rl_ant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """d4rl's locomotion package, without d4rl/__init__.py and mujoco_py, and with Gym's binding of
    today's MuJoCo; what other tests have imported of d4rl is put aside meanwhile. The names and files
    that it leaves are taken away."""
    folder = tmp_path_factory.mktemp("d4rl_ant")
    aside = {name: sys.modules.pop(name) for name in of_d4rl()}
    package, engine = ModuleType("d4rl"), ModuleType("mujoco_py")
    package.__path__ = list(importlib.util.find_spec("d4rl").submodule_search_locations)
    engine.get_version = lambda: "2.0"
    registered = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gym.envs.registration

        patch.setitem(sys.modules, "d4rl", package)
        patch.setitem(sys.modules, "mujoco_py", engine)
        patch.setenv("D4RL_DATASET_DIR", str(folder))
        patch.setattr(
            gym.envs.registration, "register", lambda id, **rest: registered.update({id: rest})
        )
        try:
            from d4rl.locomotion import ant, maze_env
        finally:
            for name in of_d4rl():
                del sys.modules[name]
    sys.modules.update(aside)

    def mkstemp(**kwargs: object) -> tuple[int, str]:
        """For MazeEnv, which leaves both the file and its descriptor behind."""
        number, path = tempfile.mkstemp(dir=folder, **kwargs)
        os.close(number)
        return number, path

    maze_env.tempfile = SimpleNamespace(mkstemp=mkstemp)
    maze_env.print = lambda *words: None
    ant.AntEnv.sim = property(
        lambda self: SimpleNamespace(data=self.data)
    )  # what mujoco-py's binding has
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gym.logger, "min_level", gym.logger.ERROR)
        yield Oracle(
            ant=ant,
            maze_env=maze_env,
            registered=registered,
            root=Path(package.__path__[0]) / "locomotion",
        )


def place(env: object, qpos: np.ndarray, qvel: np.ndarray) -> None:
    """Put an environment, antmaze.py's or d4rl's, into a state, as if nothing had been before."""
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(np.array(qpos, dtype=np.float64), np.array(qvel, dtype=np.float64))


def at(xy: tuple[float, float] | np.ndarray, z: float = 0.75) -> np.ndarray:
    """The qpos of an ant that stands at `xy`."""
    return np.array([*xy, z, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1])


def test_oracle_leaves_no_stubs(d4rl_ant: Oracle) -> None:
    """d4rl and mujoco_py in sys.modules, if any, are the real ones (or test_dataset.py's None)."""
    for name in of_d4rl():
        module = sys.modules[name]
        assert module is None or (module is not d4rl_ant.ant and getattr(module, "__file__", None)), name
    assert antmaze.ant_xml() == d4rl_ant.root / "assets/ant.xml"


# ---- 1. maps, ids, model ------------------------------------------------------------------------------
def fields(struct: object, prefix: str = "") -> dict[str, np.ndarray]:
    """Every number, array and string of a MuJoCo struct and the structs in it."""
    values = {}
    for name in dir(struct):
        value = None if name.startswith("_") else getattr(struct, name)
        if isinstance(value, (int, float, bytes, np.ndarray)):
            values[prefix + name] = np.asarray(value)
        elif type(value).__module__.startswith("mujoco"):
            values |= fields(value, f"{prefix}{name}.")
    return values


def names(model: mujoco.MjModel) -> list[bytes]:
    """The names of everything in a model, but for the goal's."""
    return [name for name in model.names.split(b"\0") if name != b"goal"]


def test_maps(d4rl_ant: Oracle) -> None:
    """antmaze.MAZES are d4rl's three *_TEST maps; there are twelve in all."""
    assert sorted(d4rl_ant.maps()) == sorted(MAPS)
    assert antmaze.MAZES == {maze: d4rl_ant.rows(name) for maze, name in TEST_MAPS.items()}


def test_maps_of_collection(d4rl_ant: Oracle) -> None:
    """collect.MAPS are the maps that D4RL collected in."""
    assert collect.MAPS == {
        maze: d4rl_ant.rows(name.removesuffix("_TEST")) for maze, name in TEST_MAPS.items()
    }


@pytest.mark.parametrize("maze", TEST_MAPS)
def test_ways_of_collection(d4rl_ant: Oracle, maze: str, capsys: pytest.CaptureFixture) -> None:
    """From any place in a free cell to any goal, collect.waypoint sends the ant where d4rl's own
    navigation sends it: to a cell just as near the goal, or to the goal; and on, where that stops with
    an error."""
    theirs = d4rl_ant.make(d4rl_ant.maps()[TEST_MAPS[maze].removesuffix("_TEST")])
    theirs = theirs.create_navigation_policy.__self__  # behind d4rl's wrappers
    navigate = theirs.create_navigation_policy(lambda state, way: np.array(way) + state[:2])
    ours, rng = collect.make_maze(f"antmaze-{maze}-diverse-local"), np.random.default_rng(0)
    cells = np.concatenate([ours.goals, ours.starts]) / 4
    counts = {"to the goal": 0, "to a cell": 0, "from a wall's cell": 0, "no path": 0}
    for _ in range(1500):
        here, goal = (rng.choice(cells).astype(int) for _ in range(2))
        ours.goal = theirs.target_goal = goal * 4 + rng.uniform(0, 1.5, 2)
        place = here * 4 + rng.uniform(-1.9, 1.9, 2)
        way = collect.waypoint(ours, place, rng)
        try:
            wanted = navigate(place)
        except ValueError:
            counts["no path"] += 1
            assert np.abs(way - place).max() < 6, "to the next cell all the same"
            continue
        if np.allclose(wanted, theirs.target_goal, atol=1e-9):
            np.testing.assert_array_equal(way, ours.goal)
            counts["to the goal"] += 1
            continue
        steps = collect.steps_to(ours, tuple(goal.tolist()))
        assert (
            len({steps[tuple(np.rint((xy - 0.5) / 4).astype(int).tolist())] for xy in (way, wanted)})
            == 1
        )
        counts["to a cell"] += 1
        counts["from a wall's cell"] += collect.cell_of(place) not in steps
    capsys.readouterr()  # d4rl prints every step
    assert (
        counts["to the goal"] > 50 and counts["to a cell"] > 300 and counts["from a wall's cell"] > 50
    ), counts
    assert counts["no path"] < 150, counts


@pytest.mark.parametrize("name", MAPS)
def test_model(d4rl_ant: Oracle, name: str) -> None:
    """The compiled model is d4rl's in every field of bodies, joints, geoms, motors, options, ...; only
    the margins are half of it, and there is a site."""
    ours, theirs = AntMazeEnv(d4rl_ant.rows(name)), d4rl_ant.make(d4rl_ant.maps()[name])
    a, b = fields(ours.model), fields(theirs.model)
    assert a.keys() == b.keys() and len(a) > 300
    different = {key for key in a if not np.array_equal(a[key], b[key])}
    bookkeeping = {"names", "names_map", "nnames", "nnames_map", "nbuffer", "signature"}
    bookkeeping |= {key for key in a if re.fullmatch("name_.*adr", key)}
    assert {key for key in different - bookkeeping if not key.startswith("site_")} == {
        "geom_margin",
        "nsite",
    }
    assert names(ours.model) == names(theirs.model)
    assert ours.model.nsite == 1 and ours.model.site(0).name == "goal" and theirs.model.nsite == 0
    assert (theirs.model.geom_margin == 0.01).all() and (ours.model.geom_margin == 0.005).all()
    # So that an empty comparison would show: what the header says of both.
    walls = [i for i in range(ours.model.ngeom) if ours.model.geom(i).name.startswith("block_")]
    assert len(walls) == "".join(d4rl_ant.rows(name)).count("#")
    assert (ours.model.geom_size[walls] == (2, 2, 1)).all() and (
        ours.model.geom_pos[walls, 2] == 1
    ).all()
    assert (
        ours.model.opt.timestep == 0.02 and ours.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    )
    assert (ours.model.actuator_ctrlrange == (-30, 30)).all() and len(ours.model.actuator_ctrlrange) == 8
    assert ours.frame_skip == theirs.frame_skip == 5 and ours.dt == theirs.dt == pytest.approx(0.1)
    np.testing.assert_array_equal(ours.init_qpos, theirs.init_qpos)
    np.testing.assert_array_equal(ours.init_qvel, theirs.init_qvel)


def test_contact_margins(d4rl_ant: Oracle) -> None:
    """A contact, with the floor or with a wall, is from 1 cm on, the larger of d4rl's two margins; left
    alone, today's MuJoCo makes it 2 cm."""
    ours, theirs = AntMazeEnv("umaze"), d4rl_ant.make(d4rl_ant.maps()["U_MAZE_TEST"])
    touched = set()
    for env, margin in ((ours, 0.01), (theirs, 0.02)):
        place(env, at((-1.5, -1.5), 0.5), np.zeros(14))
        for _ in range(10):
            env.step(np.zeros(8, np.float32))
            contact = env.data.contact
            assert set(contact.includemargin) <= {margin}
            for pair in contact.geom:
                assert theirs.model.geom_margin[pair].max() == 0.01
                touched |= {
                    env.model.geom(i).name.split("_")[0] for i in pair if env.model.geom_bodyid[i] == 0
                }
    assert touched == {"floor", "block"}


@pytest.mark.parametrize("task", antmaze.TASKS)
def test_ids(d4rl_ant: Oracle, task: str) -> None:
    """Each id is registered as d4rl registers it: map, time limit, start, evaluation, sparse reward,
    goals drawn anew; what d4rl makes of its arguments has our spaces."""
    theirs, spec = d4rl_ant.registered[f"{task}-v2"], gymnasium.spec(f"{task}-v2")
    assert theirs["entry_point"] == "d4rl.locomotion.ant:make_ant_maze_env"
    assert spec.max_episode_steps == theirs["max_episode_steps"] == antmaze.TASKS[task][1]
    arguments = theirs["kwargs"]
    assert arguments["maze_size_scaling"] == antmaze.CELL and arguments["reward_type"] == "sparse"
    assert arguments["eval"] is arguments["v2_resets"] is True and arguments["non_zero_reset"] is False
    name = TEST_MAPS[antmaze.TASKS[task][0]]
    assert arguments["maze_map"] is d4rl_ant.maps()[name]
    file = arguments["dataset_url"].rsplit("/", 1)[
        1
    ]  # its name tells the replay tool which maze it is of
    assert [maze for maze, words in replay.NAMES.items() if re.search(words, file)] == [
        antmaze.TASKS[task][0]
    ]
    env, oracle = gymnasium.make(f"{task}-v2"), d4rl_ant.ant.make_ant_maze_env(**arguments)
    assert not env.unwrapped.random_start
    np.testing.assert_array_equal(env.unwrapped.model.geom_pos, oracle.model.geom_pos)
    for a, b in (
        (env.observation_space, oracle.observation_space),
        (env.action_space, oracle.action_space),
    ):
        assert (
            a.shape == b.shape
            and a.dtype == b.dtype
            and (a.low == b.low).all()
            and (a.high == b.high).all()
        )
    first, second = env.reset(seed=0)[0], oracle.reset()
    assert (
        env.observation_space.contains(first)
        and first.dtype == second.dtype
        and first.shape == second.shape
    )


def test_all_v2_ids(d4rl_ant: Oracle) -> None:
    """The six ids are all that d4rl has of version 2."""
    assert {f"{task}-v2" for task in antmaze.TASKS} == {
        key for key in d4rl_ant.registered if key.endswith("-v2")
    }


# ---- 2. trajectories ----------------------------------------------------------------------------------
def some_actions(rng: np.random.Generator, steps: int) -> np.ndarray:
    """float32 actions: smooth ones and jumps, in [-1, 1] and far outside."""
    actions = rng.normal(size=(steps, 8))
    for i in range(1, steps):
        actions[i] = 0.8 * actions[i - 1] + 0.6 * actions[i]
    actions[steps // 2 :: 5] = rng.choice(
        [-1, 1, 0, 3, -1e30, np.inf, -np.inf], (len(actions[steps // 2 :: 5]), 8)
    )
    return actions.astype(np.float32)


@pytest.mark.parametrize("where", ["start", "goal"])
@pytest.mark.parametrize("maze", antmaze.MAZES)
def test_trajectories(d4rl_ant: Oracle, maze: str, where: str) -> None:
    """With d4rl's margins halved, too, 300 steps give the same observation, reward, end and torques bit
    for bit: from the start, in a corner, and around a goal that is put half a metre away again and
    again."""
    rng = np.random.default_rng(sum(map(ord, maze + where)))
    ours, theirs = AntMazeEnv(maze), d4rl_ant.make(d4rl_ant.maps()[TEST_MAPS[maze]])
    theirs.model.geom_margin[:] /= 2
    ours.reset(seed=1)
    theirs.wrapped_env.set_target_goal(ours.goal)
    qpos = at((-1.4, -1.4) if where == "start" else ours.goal) + rng.uniform(-0.1, 0.1, 15)
    qvel = (1 if where == "start" else 10) * rng.normal(size=14)
    place(ours, qpos, qvel)
    place(theirs, qpos, qvel)
    ends, touched = [], 0
    for i, action in enumerate(some_actions(rng, 300)):
        if where == "goal" and i % 20 == 0:
            angle = rng.uniform(0, 2 * np.pi)
            ours.goal = ours.data.qpos[:2] + 0.5 * np.array([np.cos(angle), np.sin(angle)])
            theirs.wrapped_env.set_target_goal(tuple(ours.goal))
        state, reward, terminated, truncated, info = ours.step(action)
        their_state, their_reward, done, _ = theirs.step(action)
        np.testing.assert_array_equal(state, their_state, strict=True)
        np.testing.assert_array_equal(ours.data.ctrl, theirs.data.ctrl)
        assert (reward, terminated, truncated) == (their_reward, done, False) and type(reward) is float
        assert type(terminated) is bool and info["success"] is terminated
        ends.append(done)
        touched += any(
            ours.model.geom(i).name.startswith("block") for i in ours.data.contact.geom.ravel()
        )
    assert ours.data.time == theirs.data.time == pytest.approx(30)
    if where == "start":
        assert touched > 5 and not any(ends)
    else:
        assert 30 < sum(ends) < 270, "both inside and outside"


def test_torques(d4rl_ant: Oracle) -> None:
    """Torques are 30 N m times the action cut to [-1, 1], computed as d4rl does, in float32 or in
    float64."""
    ours, theirs = AntMazeEnv("umaze"), d4rl_ant.make(d4rl_ant.maps()["U_MAZE_TEST"])
    rng = np.random.default_rng(0)
    for kind in (np.float32, np.float64, np.float16):
        for scale in (0.3, 1, 4):
            action = (scale * rng.normal(size=8)).astype(kind)
            ours.step(action)
            theirs.step(action)
            np.testing.assert_array_equal(ours.data.ctrl, theirs.data.ctrl)
            expected, rounding = (
                30 * np.clip(action.astype(float), -1, 1),
                30 * np.finfo(action.dtype).eps,
            )
            np.testing.assert_allclose(ours.data.ctrl, expected, rtol=0, atol=rounding)


# ---- 3. reward, end, time limit -----------------------------------------------------------------------
def test_reward_and_end(d4rl_ant: Oracle) -> None:
    """Reward 1 and the end are within 0.5 m of the goal, 0.5 itself included, and d4rl's at any place;
    the simulation is left out of step, so that the ant is exactly where it was put."""
    ours, theirs = AntMazeEnv("umaze"), d4rl_ant.make(d4rl_ant.maps()["U_MAZE_TEST"])
    for env in (ours, theirs.wrapped_env):
        env.do_simulation = lambda *args: None
    distances = [0, 0.3, 0.49, np.nextafter(0.5, 0), 0.5, np.nextafter(0.5, 1), 0.51, 0.7, 8]
    expected = [1, 1, 1, 1, 1, 0, 0, 0, 0]
    rng, seen = np.random.default_rng(0), []
    for goal in (np.zeros(2), np.array([0.5, 8.25]), rng.uniform(0, 9, 2)):
        ours.goal = goal
        theirs.wrapped_env.set_target_goal(tuple(goal))
        for distance, angle in itertools.product(distances, np.arange(0, 360, 15)):
            offset = distance * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
            for env in (ours, theirs):
                place(env, at(goal + offset), np.zeros(14))
            state, reward, terminated, truncated, info = ours.step(np.zeros(8))
            their_state, their_reward, done, _ = theirs.step(np.zeros(8))
            np.testing.assert_array_equal(state, their_state)
            assert (reward, terminated, truncated) == (their_reward, done, False) and info[
                "success"
            ] is terminated
            assert reward == terminated == ours._get_reset_info()["success"]
            if angle == 0 and not goal.any():  # no rounding
                seen.append(reward)
    assert seen == expected


@pytest.mark.parametrize(
    ("height", "upside_down"), [(0.1, False), (0.3, True), (0.3, False), (1.5, True)]
)
def test_a_fall_ends_nothing(d4rl_ant: Oracle, height: float, upside_down: bool) -> None:
    """An ant on its back, lower than the 0.2 m or higher than the 1 m of Gym's Ant, goes on, here and in
    d4rl."""
    ours, theirs = AntMazeEnv("umaze"), d4rl_ant.make(d4rl_ant.maps()["U_MAZE_TEST"])
    qpos, rotation, outside = at((0, 0), height), np.empty(9), 0
    qpos[3:7] = (0, 1, 0, 0) if upside_down else (1, 0, 0, 0)
    for env in (ours, theirs):
        env.reset()
        place(env, qpos, np.zeros(14))
        for _ in range(30):
            state, reward, done, *_ = env.step(np.zeros(8, np.float32))
            assert reward == 0 and done is False
            outside += not 0.2 <= state[2] <= 1
        mujoco.mju_quat2Mat(rotation, state[3:7])
        if height == 0.3:  # it lies or stands, for good
            assert (rotation[8] < 0) == upside_down and not outside
        else:
            assert outside


def test_time_limit() -> None:
    """Step 700 truncates umaze, and does not terminate it; step 699 does neither."""
    env = gymnasium.make("antmaze-umaze-v2")
    env.reset(seed=0)
    for step in range(1, 701):
        _, reward, terminated, truncated, _ = env.step(np.zeros(8, np.float32))
        assert (reward, terminated, truncated) == (0, False, step == 700)
    env.reset()
    assert env.step(np.zeros(8, np.float32))[3] is False


# ---- 4. goals and starts ------------------------------------------------------------------------------
def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two samples look as if drawn from one distribution (two-sample Kolmogorov-Smirnov
    test)."""
    return stats.ks_2samp(a, b, method="asymp").pvalue > 1e-3


def same_counts(a: np.ndarray, b: np.ndarray) -> bool:
    """The same for cells: rows and columns [n, 2], by a chi-square test on how often each was drawn."""
    cells, index = np.unique(np.vstack([a, b]), axis=0, return_inverse=True)
    table = [np.bincount(part, minlength=len(cells)) for part in np.split(index.ravel(), [len(a)])]
    return len(cells) == 1 or stats.chi2_contingency(table).pvalue > 1e-3


def our_goals(env: AntMazeEnv) -> np.ndarray:
    env.reset(seed=0)
    return np.array([env.reset()[1]["goal"] for _ in range(DRAWS)])


def their_goals(oracle: object) -> np.ndarray:
    np.random.seed(1)
    return np.array([oracle.wrapped_env.goal_sampler(np.random) for _ in range(DRAWS)])


@pytest.mark.parametrize("name", MAPS)
def test_goals(d4rl_ant: Oracle, name: str) -> None:
    """Goals are distributed as d4rl's: the cells, and where in the cell. Others are told apart by the
    same tests."""
    env = AntMazeEnv(d4rl_ant.rows(name))
    ours, theirs = our_goals(env), their_goals(d4rl_ant.make(d4rl_ant.maps()[name]))
    cells, their_cells = ours // 4, theirs // 4
    assert set(map(tuple, 4 * cells)) == set(map(tuple, 4 * their_cells)) == set(map(tuple, env.goals))
    assert same_counts(cells, their_cells)
    rng = np.random.default_rng(2)
    for axis in (0, 1):
        assert same(ours[:, axis], theirs[:, axis])
        a, b = (ours - 4 * cells)[:, axis], (theirs - 4 * their_cells)[:, axis]
        assert same(a, b)
        for values in (a, b):
            assert 0 <= values.min() < 0.08 and 1.42 < values.max() <= 1.5
        for mutant in (
            rng.uniform(0, 1, DRAWS),  # without the second draw
            rng.uniform(0, 1, DRAWS) + rng.uniform(0, 1, DRAWS),
            rng.uniform(0, 1.5, DRAWS),
            a + 0.1,
        ):
            assert not same(mutant, b)
    assert abs(np.corrcoef((ours - 4 * cells).T)[0, 1]) < 0.1, "two draws, not one for both axes"
    if len(env.goals) > 1:
        assert not same_counts(
            np.where(rng.random((DRAWS, 1)) < 0.2, env.goals[0] / 4, cells), their_cells
        )


def test_goals_are_cut_at_zero(d4rl_ant: Oracle) -> None:
    """A goal cell at negative coordinates, which none of d4rl's maps has, gives 0 there as in d4rl."""
    env = AntMazeEnv(["######", "#G GS#", "######"])
    oracle = d4rl_ant.make([[1] * 6, [1, "g", 0, "g", "r", 1], [1] * 6])
    ours, theirs = our_goals(env), their_goals(oracle)
    assert (ours[:, 0] == 0).all() and (theirs[:, 0] == 0).all() and same(ours[:, 1], theirs[:, 1])


@pytest.mark.parametrize("name", ["U_MAZE", "BIG_MAZE", "HARDEST_MAZE", "U_MAZE_EVAL"])
def test_random_starts(d4rl_ant: Oracle, name: str) -> None:
    """random_start starts where d4rl's non_zero_reset does: the free cells, the start's and no goal's;
    offsets in them, with 0 as the least coordinate (which cuts in U_MAZE_EVAL)."""
    env = AntMazeEnv(d4rl_ant.rows(name), random_start=True)
    oracle = d4rl_ant.make(d4rl_ant.maps()[name], non_zero_reset=True)
    env.reset(seed=3)
    ours = np.array([env.reset()[0][:2] for _ in range(DRAWS)])
    np.random.seed(4)
    oracle.wrapped_env.seed(4)
    theirs = np.array([oracle.reset()[:2] for _ in range(DRAWS // 4)])
    theirs = np.vstack(
        [theirs, [oracle.wrapped_env._get_reset_location() for _ in range(DRAWS - len(theirs))]]
    )
    cells, their_cells = ours // 4, theirs // 4
    assert same_counts(cells, their_cells)
    grid = np.array([list(row) for row in d4rl_ant.rows(name)])
    (start,) = np.argwhere(grid == "S")
    expected = {
        (max(4 * j, 0), max(4 * i, 0)) for i, j in np.argwhere(np.isin(grid, [" ", "S"])) - start
    }
    assert set(map(tuple, 4 * cells)) == set(map(tuple, 4 * their_cells)) == expected
    rng = np.random.default_rng(5)
    for axis in (0, 1):
        assert same(ours[:, axis], theirs[:, axis])
        a, b = (ours - 4 * cells)[:, axis], (theirs - 4 * their_cells)[:, axis]
        assert same(a, b) and a.min() >= 0 and a.max() <= 1 and a.max() > 0.99
        assert not same(rng.uniform(0, 2, DRAWS), b) and not same(rng.uniform(-0.5, 0.5, DRAWS), b)
    mutant = np.where(rng.random((DRAWS, 1)) < 0.1, 0, cells)  # the start too often
    assert not same_counts(mutant, their_cells)


def test_reset_noise(d4rl_ant: Oracle) -> None:
    """The start is qpos0 with U(-0.1, 0.1) on each number, the quaternion then normalised, and N(0, 0.1)
    velocities: d4rl's, and what the header says."""
    env, oracle = AntMazeEnv("umaze"), d4rl_ant.make(d4rl_ant.maps()["U_MAZE_TEST"])
    env.reset(seed=6)
    oracle.wrapped_env.seed(7)
    ours, theirs = (
        np.array([one() for _ in range(DRAWS)]) for one in (lambda: env.reset()[0], oracle.reset)
    )
    assert np.abs(np.linalg.norm(ours[:, 3:7], axis=1) - 1).max() < 1e-12
    raw = theirs[:, 3:7].copy()
    theirs[:, 3:7] /= np.linalg.norm(raw, axis=1, keepdims=True)
    assert all(same(ours[:, i], theirs[:, i]) for i in range(29))
    for i in {*range(15)} - {3, 4, 5, 6}:
        noise = ours[:, i] - env.init_qpos[i]
        assert (
            stats.kstest(noise, stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
            and np.abs(noise).max() <= 0.1
        )
        assert not same(1.5 * noise, theirs[:, i] - env.init_qpos[i])
    for i in range(15, 29):
        assert stats.kstest(ours[:, i], stats.norm(0, 0.1).cdf).pvalue > 1e-3
        assert not same(1.5 * ours[:, i], theirs[:, i])
    correlation = np.corrcoef(np.delete(ours, 3, 1).T)  # the real part is a function of the other three
    assert np.abs(correlation - np.eye(28)).max() < 0.1, "each number has its own noise"
    assert raw.std() > 0.01 and (np.linalg.norm(raw, axis=1) != 1).all(), (
        "normalised by d4rl's MuJoCo, not by today's"
    )


# ---- 5. seeds -----------------------------------------------------------------------------------------
def digest(states: list[np.ndarray]) -> str:
    return hashlib.sha256(np.array(states).tobytes()).hexdigest()


def test_seeds() -> None:
    """A seed gives its start and goal again, another does not; resets without a seed go on in one
    stream, with another goal each time, and are not given again by a new environment without a seed."""

    def stream(env: AntMazeEnv, seed: int | None) -> list[np.ndarray]:
        first = env.reset(seed=seed)
        return [
            np.concatenate([state, info["goal"]]) for state, info in (first, env.reset(), env.reset())
        ]

    env = AntMazeEnv("umaze")
    one, again, new, other = (
        stream(env, 5),
        stream(env, 5),
        stream(AntMazeEnv("umaze"), 5),
        stream(env, 6),
    )
    unseeded = [stream(AntMazeEnv("umaze"), None) for _ in range(2)]
    assert digest(one) == digest(again) == digest(new)
    every = np.array([*one, *other, *unseeded[0], *unseeded[1]])
    for i, column in enumerate(every.T):
        assert len(set(column)) == len(every), f"column {i}: something is not drawn anew"
    env.reset(seed=5)
    np.testing.assert_array_equal(np.concatenate([env.reset()[0], env.goal]), one[1])


def test_steps_draw_nothing() -> None:
    """Steps draw no random number: the start after them is the same as without."""
    one, two = AntMazeEnv("umaze"), AntMazeEnv("umaze")
    one.reset(seed=0), two.reset(seed=0)
    for _ in range(20):
        one.step(np.full(8, 0.5))
    np.testing.assert_array_equal(one.reset()[0], two.reset()[0])
    np.testing.assert_array_equal(one.goal, two.goal)


def test_global_generators() -> None:
    """Python's and NumPy's global generators, which d4rl draws goals from, have no influence and are
    left alone."""
    results = []
    for seed in (1, 2):
        np.random.seed(seed), random.seed(seed)
        before = np.random.get_state()[1:], random.getstate()
        env = AntMazeEnv("medium", random_start=True)
        states = [env.reset(seed=3)[0], env.goal]
        states += [env.step(np.full(8, 0.5))[0], env.reset()[0], env.goal]
        after = np.random.get_state()[1:], random.getstate()
        assert all(np.array_equal(a, b) for a, b in zip(before[0], after[0])) and before[1] == after[1]
        results.append(hashlib.sha256(np.concatenate(states).tobytes()).hexdigest())
    assert results[0] == results[1]


def test_instances_share_nothing() -> None:
    """One seed and the same actions give the same 1,000 observations, bit for bit, in two environments
    of one process, with a third one stepped and reset in between, and in two further processes."""
    actions = some_actions(np.random.default_rng(8), 1000)
    make = functools.partial(AntMazeEnv, "medium")
    one, two, third = make(), make(), AntMazeEnv("large", random_start=True)
    histories = [[env.reset(seed=9)[0]] for env in (one, two)]
    third.reset(seed=10)
    for i, action in enumerate(actions):
        histories[0].append(one.step(action)[0])
        if i % 3 == 0:
            third.reset() if i % 30 == 0 else third.step(-action)
        histories[1].append(two.step(action)[0])
    assert digest(histories[0]) == digest(histories[1])
    envs = gymnasium.vector.AsyncVectorEnv([make, make], context="spawn")
    try:
        first, infos = envs.reset(seed=[9, 9])
        np.testing.assert_array_equal(infos["goal"], [one.goal, one.goal])
        states = [first.copy()] + [envs.step(np.stack([action, action]))[0].copy() for action in actions]
    finally:
        envs.close()
    for i in (0, 1):
        assert digest([state[i] for state in states]) == digest(histories[0])


# ---- 6. robustness ------------------------------------------------------------------------------------
def hostile_actions(kind: str, rng: np.random.Generator, steps: int) -> np.ndarray:
    if kind == "random":
        return rng.uniform(-1, 1, (steps, 8))
    if kind == "bang-bang":
        return rng.choice([-1.0, 1.0], (steps, 8))
    if kind == "held":  # one corner for 20 steps, then another
        return np.repeat(rng.choice([-1.0, 1.0], (steps // 20, 8)), 20, axis=0)
    if kind == "huge":
        return rng.choice([1e30, -1e30, np.inf, -np.inf, 0], (steps, 8))
    time = np.arange(steps)[:, None]  # smooth
    return np.sin(time * rng.uniform(0.1, 2, 8) + rng.uniform(0, 6, 8))


@pytest.mark.parametrize("kind", ["random", "bang-bang", "held", "huge", "smooth"])
def test_any_action_is_survived(kind: str) -> None:
    """2,000 steps of any action keep the state finite and bounded and the ant in the maze, without a
    warning."""
    env, rng = AntMazeEnv("medium", random_start=True), np.random.default_rng(11)
    rows = antmaze.MAZES["medium"]
    env.reset(seed=12)
    for i, action in enumerate(hostile_actions(kind, rng, 2000).astype(np.float32)):
        if i % 250 == 0:
            env.reset()
        state, reward, terminated, truncated, _ = env.step(action)
        assert env.observation_space.contains(state) and np.isfinite(state).all()
        assert np.abs(state[2:15]).max() < 2 and np.abs(state[15:]).max() < 20, state
        x, y = state[:2] + env.origin
        assert rows[round(y / 4)][round(x / 4)] != "#", "in a wall"
        assert reward in (0, 1) and truncated is False
    assert not any(warning.number for warning in env.data.warning)


BAD_ACTIONS = {
    "scalar": 0.5, "seven": np.zeros(7), "nine": np.zeros(9), "a batch": np.zeros((1, 8)), "empty": [],
    "None": None, "word": "forward", "words": ["0"] * 8, "Nones": [None] * 8, "truths": [True] * 8,
    "complex": np.zeros(8, complex),
    "NaN": np.array([0, 0, 0, np.nan, 0, 0, 0, 0]), "float32 NaN": np.full(8, np.nan, np.float32),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ACTIONS)
def test_bad_action(name: str) -> None:
    """Any other action is refused, the message says what is expected, and nothing has happened."""
    whole = mujoco.mjtState.mjSTATE_INTEGRATION
    env = gymnasium.make("antmaze-umaze-v2", disable_env_checker=True)
    twin = AntMazeEnv("umaze")
    for one in (env, twin):
        one.reset(seed=0)
        one.step(np.full(8, 0.7))
    raw, state = env.unwrapped, np.empty(mujoco.mj_stateSize(twin.model, whole))
    mujoco.mj_getState(raw.model, raw.data, state, whole)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"8 numbers.*NaN.*\[-1, 1\]"):
            env.step(BAD_ACTIONS[name])
    after = np.empty_like(state)
    mujoco.mj_getState(raw.model, raw.data, after, whole)
    np.testing.assert_array_equal(after, state)
    np.testing.assert_array_equal(env.step(np.full(8, -0.3))[0], twin.step(np.full(8, -0.3))[0])


def test_good_actions() -> None:
    """A list, integers, float64 and float32 are actions; the caller's array is left as it was."""
    env, results = AntMazeEnv("umaze"), []
    for action in ([1] * 8, np.ones(8, np.int32), np.ones(8), np.ones(8, np.float32), np.full(8, 7.0)):
        env.reset(seed=0)
        kept = np.array(action)
        results.append(env.step(action)[0])
        np.testing.assert_array_equal(action, kept, strict=True)
    assert len({result.tobytes() for result in results}) == 1


@pytest.mark.parametrize(
    ("part", "value"), [("qvel", 1e12), ("qvel", np.nan), ("qpos", np.inf), ("qpos", 1e11)]
)
def test_unstable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str, value: float) -> None:
    """An unstable simulation is an error until reset, which goes on as if nothing had been."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log file
    env = AntMazeEnv("umaze")
    env.reset(seed=0)
    getattr(env.data, part)[:] = value
    for _ in range(2):
        with pytest.raises(RuntimeError, match="unstable.*reset"):
            env.step(np.zeros(8))
    twin = AntMazeEnv("umaze")
    np.testing.assert_array_equal(env.reset(seed=1)[0], twin.reset(seed=1)[0])
    for _ in range(3):
        np.testing.assert_array_equal(env.step(np.ones(8))[0], twin.step(np.ones(8))[0])


BAD_MAZES = ["no such", "", [], ["##"], [" G"], ["SGS"], ["S #"], ["SG?"], ["#sg"], [[1, "r", 0, "g"]]]
BAD_MAZES += [None, 5, [None, "SG"], ["SG", "#"]]


@pytest.mark.parametrize("maze", BAD_MAZES, ids=str)
def test_bad_maze(maze: object) -> None:
    """A maze that is none is refused, and the message says what one is."""
    with pytest.raises(
        ValueError, match="expected one of umaze, medium, large, or rows of '#', ' ', one 'S'"
    ):
        AntMazeEnv(maze)


def test_maze_without_walls() -> None:
    """Walls are not required."""
    env = AntMazeEnv(["S G"])
    assert env.reset(seed=0)[1]["goal"][0] >= 8 and env.model.ngeom == 14
    env.step(np.zeros(8))


@pytest.mark.parametrize("found", ["no package", "a package without the file"])
def test_without_d4rl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: str) -> None:
    """Without d4rl's ant.xml the error names the command that brings it."""
    spec = None if found == "no package" else SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install --no-deps d4rl==1.1")):
        AntMazeEnv("umaze")


def test_info() -> None:
    """info of reset and step holds the goal, as a copy, and success."""
    env = AntMazeEnv("umaze")
    state, info = env.reset(seed=0)
    goal = info["goal"].copy()
    for _ in range(2):
        assert sorted(info) == ["goal", "success"] and info["success"] is False
        info["goal"][:] = state[:2]
        np.testing.assert_array_equal(env.goal, goal)
        np.testing.assert_array_equal(env.model.site("goal").pos[:2], goal)
        state, reward, terminated, _, info = env.step(np.zeros(8))
        np.testing.assert_array_equal(info["goal"], goal)
        assert reward == 0 and not terminated
    place(env, at(goal), np.zeros(14))
    assert env._get_reset_info()["success"] is True and env.step(np.zeros(8))[4]["success"] is True
    held = env.reset(seed=0)[0]
    kept = held.copy()
    env.step(np.ones(8))
    np.testing.assert_array_equal(held, kept, err_msg="an observation is a copy")


@pytest.mark.filterwarnings("ignore")
def test_gymnasium_checker() -> None:
    """gymnasium's own checks of an environment pass."""
    check_env(AntMazeEnv("umaze"), skip_render_check=True)


# ---- 7. pictures --------------------------------------------------------------------------------------
PICTURES = """
import sys
try:
    import mujoco
    mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16).close()
except Exception as error:
    print(error)
    sys.exit(77)
import gymnasium, numpy as np
import antmaze
frames, goals = [], []
env = gymnasium.make("antmaze-umaze-v2", render_mode="rgb_array")
for seed in (0, 1):
    goals.append(env.reset(seed=seed)[1]["goal"])
    frames.append(env.render())
env.step(np.zeros(8, np.float32))
frames.append(env.render())
env.close()
large = gymnasium.make("antmaze-large-play-v2", render_mode="rgb_array", width=800, height=600)
large.reset(seed=0)
wide = large.render()
large.close()
np.savez("frames.npz", frames=frames, goals=goals, wide=wide)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Frames of umaze with two goals, and a wide one of large; skips where MuJoCo cannot draw without a
    display."""
    folder = tmp_path_factory.mktemp("pictures")
    for kind in ("egl", "osmesa"):
        environment = os.environ | {"MUJOCO_GL": kind, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PICTURES]
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=40
            )
        except subprocess.TimeoutExpired:
            continue
        if (folder / "frames.npz").is_file():
            with np.load(folder / "frames.npz") as file:
                return dict(file)
        assert done.returncode == 77, done.stderr  # else it is antmaze.py that fails
    pytest.skip("no OpenGL without a display")


def pixel(x: float, y: float, z: float, size: int = 480) -> np.ndarray:
    """Column and row where umaze's default camera, straight above the middle, shows a point: x right, y
    up."""
    distance = 1.35 * 20  # of a maze of 20 x 20 m
    scale = size / 2 / np.tan(np.deg2rad(45 / 2)) / (distance - z)
    return np.array([size / 2 + (x - 4) * scale, size / 2 - (y - 4) * scale])


def test_pictures(pictures: dict[str, np.ndarray]) -> None:
    """Seen from above, the red disc is where the goal is, in its size, and moves with it; walls stand
    out; a larger picture is one."""
    frames, goals = pictures["frames"].astype(int), pictures["goals"]
    assert frames.shape == (3, 480, 480, 3) and pictures["wide"].shape == (600, 800, 3)
    assert np.linalg.norm(goals[0] - goals[1]) > 0.2
    for frame, goal in zip(frames, (goals[0], goals[1], goals[1])):
        red, green, blue = np.moveaxis(frame, 2, 0)
        rows, columns = np.nonzero((red > 1.8 * green) & (red > 1.8 * blue) & (red > 60))
        np.testing.assert_allclose((columns.mean() + 0.5, rows.mean() + 0.5), pixel(*goal, 0.04), atol=1)
        area = np.pi * (pixel(antmaze.REACHED, 0, 0.04) - pixel(0, 0, 0.04))[0] ** 2
        assert 0.8 < len(rows) / area < 1.2
        colours = {}
        for i, row in enumerate(antmaze.MAZES["umaze"]):
            for j, symbol in enumerate(row):
                column, line = pixel(4 * j - 4, 4 * i - 4, 2 if symbol == "#" else 0).astype(int)
                if 0 <= column < 480 and 0 <= line < 480:
                    colours.setdefault(symbol, []).append(frame[line, column])
        walls, floor = np.array(colours["#"]), np.array(colours[" "])
        assert (walls[:, 0] > walls[:, 2] + 40).all() and (floor[:, 0] < floor[:, 2] - 40).all(), (
            "brown, on blue"
        )
    assert pictures["wide"].std() > 20


# ---- 8. tools/antmaze/replay.py -----------------------------------------------------------------------
D4RL_NAME = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
Rows = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def recorded() -> Rows:
    """400 float32 rows of umaze with the state before and behind each action; after row 149 comes a
    reset at a time limit, to a place close by, after row 299 one without a mark, to a far one."""
    env, rng, rows = AntMazeEnv("umaze"), np.random.default_rng(13), []
    state, _ = env.reset(seed=14)
    action = rng.normal(size=8)
    for i in range(400):
        action = np.clip(0.7 * action + 0.5 * rng.normal(size=8), -1, 1).astype(np.float32)
        behind = env.step(action)[0]
        rows.append((state, action, i == 149, behind))
        state = behind
        if i in (149, 299):
            place(env, at(behind[:2] + 0.2 if i == 149 else (8, 4)), np.zeros(14))
            state = env._observation()
    states, actions, timeouts, behind = map(np.array, zip(*rows))
    return {"states": states.astype(np.float32), "actions": actions, "timeouts": timeouts,
            "behind": behind.astype(np.float32)}  # fmt: skip


@pytest.fixture
def write(recorded: Rows, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the rows as a file in D4RL's layout: infos "behind" the action, "before" it
    or None; `changes` are further datasets, None for those left out."""

    def write(infos: str | None, name: str = D4RL_NAME, **changes: object) -> Path:
        data = {
            "observations": recorded["states"],
            "actions": recorded["actions"],
            "timeouts": recorded["timeouts"],
        }
        data |= {"rewards": np.zeros(400, np.float32), "terminals": np.zeros(400, bool)}
        if infos:
            states = recorded["behind" if infos == "behind" else "states"]
            data |= {
                "infos/qpos": states[:, :15],
                "infos/qvel": states[:, 15:],
                "infos/goal": np.zeros((400, 2)),
            }
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in (data | changes).items():
                if value is not None:
                    file[key] = value
        return tmp_path / name

    return write


def table_of(path: Path, **flags: object) -> dict[str, list[np.ndarray]]:
    """What the tool returns: for each of its lines quantiles (50, 90, 99, 100 %) for qpos and for
    qvel."""
    return replay.compare(replay.Args(path, **flags))


@pytest.mark.parametrize("infos", ["behind", "before", None])
def test_replay(write: Callable[..., Path], capsys: pytest.CaptureFixture, infos: str | None) -> None:
    """Of a file that antmaze.py made, errors are float32's, wherever the states are in it; resets are
    left out, and the last line says what such a file does not show."""
    table = table_of(write(infos))
    lines = capsys.readouterr().out.strip().splitlines()
    still, ours, stock, old = table.values()
    same = ["the same, margins as in ant.xml", "the same, capsules as before 2.1.2"]
    assert list(table) == ["standing still", f"antmaze.py, MuJoCo {mujoco.__version__}", *same]
    assert 0.001 < stock[0][0] < 0.1 * still[0][0]
    assert ours[0][1] < 1e-6 and ours[0][3] < 1e-5 and ours[1][1] < 1e-5 and ours[1][3] < 2e-4, ours
    assert still[0][0] > 1e4 * ours[0][0] and still[1][0] > 1e4 * ours[1][0] and still[0][0] > 0.05
    assert old[0][0] > 30 * ours[0][0] and old[1][0] > 30 * ours[1][0] and old[0][0] < 0.1 * still[0][0]
    text = " ".join(lines)
    assert f"400 rows; states recorded {'behind' if infos == 'behind' else 'before'} the action" in text
    assert "left out: 1 at a time limit, 1 resets without a mark, 0 not finite" in text
    assert "over 397 rows of umaze" in text
    assert text.endswith(
        "Only a file that D4RL made checks this simulator against D4RL's; any other shows that the "
        "replay works."
    )


def test_replay_errors() -> None:
    """An error is the largest of a row, of qpos and of qvel; a quaternion's sign is none, and the input
    is kept."""
    recorded = np.random.default_rng(15).normal(size=(101, 29))
    qpos, qvel = np.arange(101) / 100, np.arange(101) / 10
    predicted = recorded.copy()
    predicted[:, 7] += qpos
    predicted[:, 8] += 0.5 * qpos
    predicted[:, 28] -= qvel
    predicted[::2, 3:7] *= -1
    kept = predicted.copy()
    result = replay.errors(predicted, recorded)
    np.testing.assert_allclose(result, [[0.5, 0.9, 0.99, 1], [5, 9, 9.9, 10]])
    np.testing.assert_array_equal(predicted, kept)


def test_replay_command_line(write: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    """As a command it takes the file, the maze, the number of rows and the seed of their draw."""
    path = write("behind", name="data.hdf5")
    command = [
        sys.executable,
        str(ROOT / "tools/antmaze/replay.py"),
        str(path),
        "--maze",
        "umaze",
        "--rows",
        "20",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "over 20 rows of umaze" in done.stdout
    same_rows, other = (
        table_of(path, maze="umaze", rows=20),
        table_of(path, maze="umaze", rows=20, seed=1),
    )
    assert (
        "".join(f"{value:10.1e}" for value in np.concatenate(same_rows["standing still"])) in done.stdout
    )
    assert not np.array_equal(same_rows["standing still"], other["standing still"])


def test_replay_says_what_the_file_says(
    write: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    """Attributes of a file, as of one made here, are printed."""
    path = write("before")
    with h5py.File(path, "a") as file:
        file.attrs["simulator"] = "some version"
    table_of(path, rows=5)
    assert '{"simulator": "some version"}' in capsys.readouterr().out


@pytest.mark.parametrize("physics", ["frame skip", "margins", "torque", "damping", "maze"])
def test_replay_detects_other_physics(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, physics: str
) -> None:
    """A simulator that differs from the one that recorded shows at once."""
    path, ours = write("behind"), f"antmaze.py, MuJoCo {mujoco.__version__}"

    class Other(AntMazeEnv):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            if physics == "frame skip":
                self.frame_skip = 4
            elif physics == "margins":
                self.model.geom_margin[:] *= 2
            elif physics == "torque":
                self.torque_low, self.torque_high = 0.9 * self.torque_low, 0.9 * self.torque_high
            elif physics == "damping":
                self.model.dof_damping[:] *= 1.1

    monkeypatch.setattr(antmaze, "AntMazeEnv", Other)
    quantiles = table_of(path, maze="large" if physics == "maze" else None)[ours][0]
    if physics == "maze":  # large has no wall where the first rows are, and one where the last are
        assert quantiles[0] < 1e-5 and quantiles[3] > 1e-2
    else:
        assert quantiles[0] > 1e-3


def capsules_as_cylinders() -> mujoco.MjModel:
    """The ant, compiled with cylinders half a radius longer at each end in the place of its capsules."""
    text = antmaze.ant_xml().read_text()

    def cylinder(match: re.Match) -> str:
        ends = np.array(match[2].split(), float).reshape(2, 3)
        along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
        ends += np.array([[-0.5], [0.5]]) * float(match[1]) * along
        return f'type="cylinder" size="{match[1]}" fromto="{" ".join(map(repr, ends.ravel().tolist()))}"'

    text, number = re.subn(r'type="capsule" size="([\d.]+)" fromto="([^"]+)"', cylinder, text)
    assert number == 12
    return mujoco.MjModel.from_xml_string(text)


def test_cylinder_capsules() -> None:
    """MuJoCo's masses before 2.1.2: counted by hand, and every mass and inertia as compiled from such
    cylinders."""
    model, density = AntMazeEnv("umaze").model, 5.0
    torso, cross = 4 / 3 * np.pi * 0.25**3, np.pi * 0.08**2
    lengths = 8 * [0.2 * np.sqrt(2)] + 4 * [0.4 * np.sqrt(2)]
    exact = density * (torso + sum(cross * (length + 4 / 3 * 0.08) for length in lengths))
    old = density * (torso + sum(cross * (length + 0.08) for length in lengths))
    np.testing.assert_allclose(model.body_mass.sum(), exact, rtol=1e-9)
    replay.cylinder_capsules(model)
    np.testing.assert_allclose(model.body_mass.sum(), old, rtol=1e-9)
    assert 1 - old / exact == pytest.approx(0.035, abs=5e-4), "the header's 3.5 % lighter"
    expected = capsules_as_cylinders()
    keys = "body_mass body_subtreemass body_inertia body_ipos body_iquat body_invweight0"
    for key in (keys + " dof_invweight0 dof_M0 actuator_acc0").split():
        np.testing.assert_allclose(
            getattr(model, key), getattr(expected, key), rtol=1e-6, atol=1e-9, err_msg=key
        )


BAD_FILES = "observations,actions,shapes,few,qpos,timeouts,text,bool,not HDF5,cut,none,NaN".split(",")


@pytest.mark.parametrize("case", BAD_FILES)
def test_replay_bad_file(write: Callable[..., Path], tmp_path: Path, case: str) -> None:
    """A file that cannot be replayed is an error with a reason, not a traceback."""
    reason = {
        "shapes": "are needed",
        "few": "are needed",
        "qpos": "are needed",
        "NaN": "no row that can be replayed",
    }
    wrong = {"qpos": {"infos/qpos": np.zeros((399, 15))}, "timeouts": {"timeouts": np.zeros(45, bool)}}
    wrong |= {
        "text": {"actions": np.full((400, 8), b"a")},
        "bool": {"observations": np.ones((400, 29), bool)},
    }
    if case in ("observations", "actions"):
        path, expected = write("behind", **{case: None}), f"has no {case}"
    elif case == "shapes":
        path, expected = write("behind", observations=np.zeros((400, 17))), reason[case]
    elif case == "few":
        one = {"observations": np.zeros((1, 29)), "actions": np.zeros((1, 8)), "timeouts": [False]}
        path, expected = write(None, **one), reason[case]
    elif case in wrong:
        path, expected = write("behind", **wrong[case]), "are needed"
    elif case == "NaN":
        path, expected = write(None, actions=np.full((400, 8), np.nan)), reason[case]
    else:
        path, expected = write("behind"), "as an HDF5 file"
        if case == "none":
            path.unlink()
        else:
            path.write_bytes(
                b"<html>" if case == "not HDF5" else path.read_bytes()[: path.stat().st_size // 2]
            )
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{expected}"):
        table_of(path)


BAD_FLAGS = [
    ("data.hdf5", {}),
    (D4RL_NAME, {"maze": "u-maze"}),
    (D4RL_NAME, {"rows": 0}),
    (D4RL_NAME, {"seed": -1}),
]
BAD_FLAGS += [(D4RL_NAME, {"record": -1}), (D4RL_NAME, {"record": 1})]


@pytest.mark.parametrize(("name", "flags"), BAD_FLAGS)
def test_replay_bad_flag(write: Callable[..., Path], name: str, flags: dict[str, object]) -> None:
    """A maze that is none, or that the file's name does not say, and numbers out of range are errors."""
    with pytest.raises(ValueError, match="has to be"):
        table_of(write("behind", name=name), **flags)


def test_replay_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """--record makes a file of D4RL's layout, the same for the same seed, whose replay has rounding
    errors only; it never replaces a file."""
    one, two = (tmp_path / f"medium-{i}.hdf5" for i in "12")
    table = table_of(one, record=300)
    assert max(quantiles[-1] for quantiles in list(table.values())[1]) < 1e-4 and list(
        tmp_path.iterdir()
    ) == [one]
    with h5py.File(one) as file:
        assert file["observations"].shape == (300, 29) and file["timeouts"].dtype == bool
        np.testing.assert_array_equal(file["infos/qpos"][:-1], file["observations"][1:, :15])
    table_of(two, record=300)
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(ValueError, match="already there"):
        table_of(one, record=10)
    assert one.read_bytes() == two.read_bytes()


# ---- 9. the header's references -----------------------------------------------------------------------
REFERENCES = {  # what the first and the last line must hold, and what must be somewhere in between
    ("__init__.py", "324-424"): ("register(", ")", ["'antmaze-umaze-v2'", "'v2_resets'"]),
    ("maze_env.py", "56-79"): ("U_MAZE_TEST = [", "]]", ["BIG_MAZE_TEST = [", "HARDEST_MAZE_TEST = ["]),
    ("maze_env.py", "177-196"): ("for i in range(len(self._maze_map", ")", ['type="box"', "- torso_x"]),
    ("maze_env.py", "270-277"): ("def _find_robot", "raise ValueError", ["return j * size_scaling, i"]),
    ("ant.py", "53"): ("file_path, 5", "file_path, 5", []),
    ("ant.py", "90-96"): ("def _get_obs", "])", ["qpos.flat[:15]", "qvel.flat[:14]"]),
    ("ant.py", "169"): ("expose_all_qpos=True", "", []),
    ("goal_reaching_env.py", "34"): ("else:", "", []),
    ("wrappers.py", "142-159"): ("ub = np.ones", "np.clip", ["lb + (action + 1.) * 0.5 * (ub - lb)"]),
    ("ant.py", "120-134"): ("def reset_model", "return self._get_obs()", ["low=-.1, high=.1"]),
    ("maze_env.py", "214-225"): ("def _get_reset_location", "return (max(", ["* 0.5 * self"]),
    ("ant.py", "187-202"): ("if self.v2_resets", "return super().reset()", ["self.set_target()"]),
    ("maze_env.py", "227-258"): ("def _rowcol_to_xy", "return xy", ["* 0.25 *", "max(xy[0]"]),
    ("goal_reaching_env.py", "41-42"): ("== 'sparse'", "reward = 1.0 if", ["<= 0.5 else 0.0"]),
    ("goal_reaching_env.py", "44-47"): ("done = False", "done = True", ["if self.eval and", "<= 0.5"]),
}  # fmt: skip


def test_references(d4rl_ant: Oracle) -> None:
    """The line numbers of d4rl's sources in the header of antmaze.py, all of them, are where it says."""
    found = set()
    for line in antmaze.__doc__.splitlines():
        file = None
        for name, lines in re.findall(r"(\b\w+\.py)\b|(?<![\d.])(\d{2,}(?:-\d+)?)\b", line):
            if name:
                file = name if (d4rl_ant.root / name).is_file() else None
            elif file:
                found.add((file, lines))
    assert found == set(REFERENCES)
    for (file, lines), (first, last, between) in REFERENCES.items():
        low, high = (int(number) for number in (lines.split("-") * 2)[:2])
        text = (d4rl_ant.root / file).read_text().splitlines()[low - 1 : high]
        assert len(text) == high - low + 1 and first in text[0] and last in text[-1], (file, lines)
        assert all(any(part in line for line in text) for part in between), (file, lines, between)
    assert (d4rl_ant.root / "assets/ant.xml").is_file()
