"""D4RL's six AntMaze-v2 tasks as Gymnasium environments on today's MuJoCo.

    pip install --no-deps d4rl==1.1  # for its ant.xml; nothing of the package is imported

    import antmaze, gymnasium
    env = gymnasium.make("antmaze-umaze-v2")   # or -umaze-diverse, -medium-play, -large-play, ...

A four-legged ant with eight motors has to walk to a goal that it is not told. Where each rule comes from
in d4rl 1.1's folder locomotion/, with line numbers; tests/test_antmaze.py runs those sources, too:

    ids, maps, limits of 700, 1000 steps  __init__.py 324-424: *_TEST maps, cells of 4 m, eval, sparse
    maps                                  maze_env.py 56-79
    robot and engine options              assets/ant.xml, unchanged: 0.02 s, RK4, motors limited to ±30
    walls: 4 x 4 x 2 m, the start at 0    maze_env.py 177-196, 270-277
    frame skip 5: a step is 0.1 s         ant.py 53
    observation: 15 qpos, 14 qvel         ant.py 90-96 with 169; goal_reaching_env.py 34 (no goal in it)
    action in [-1, 1] to torque in ±30    wrappers.py 142-159
    start: qpos0 + U(-0.1, 0.1), qvel     ant.py 120-134; with random_start maze_env.py 214-225:
      N(0, 0.1)                             the centre of a free cell + U(0, 1) on each axis, 0 or more
    goal: anew at every reset             ant.py 187-202, maze_env.py 227-258: the centre of a goal cell
                                            + U(0, 1) + U(0, 0.5) on each axis, 0 or more
    reward 1 within 0.5 m of it, else 0   goal_reaching_env.py 41-42
    the episode ends there, only there    goal_reaching_env.py 44-47; a fall does not end it

Where this departs from those sources:
 1 All random numbers come from the environment's own generator, which reset(seed=...) seeds. D4RL draws
   the goal from NumPy's global generator, which it shares with everything else in the process.
 2 An action that holds NaN or has another shape is refused with ValueError. A simulation that has become
   unstable raises RuntimeError, as under mujoco-py; MuJoCo alone would put the ant back to its start.
 3 Two things are put back as they were in the MuJoCo that D4RL's data was made with. Since 3.5 the
   margins of two geoms add up where the larger one used to count, which moves every contact of this ant
   from 1 cm to 2 cm and its joints by 0.01 rad a step, so margins are halved here. Since 3.2 a reset
   leaves the start's quaternion unnormalised.
 4 A red disc shows the goal in pictures. It is a site: no mass, no contact.
Two changes of MuJoCo are left as they are, since their effect is small: 4.0's RK4 differs from that of
2.3 to 3.17 by about 1e-5 rad a step, and before 2.1.2 a capsule had the mass of a cylinder, which makes
this ant 3.5 % lighter and differs by 3e-4. tools/antmaze/replay.py measures it.
"""

import importlib.util
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from packaging.version import Version

MAZES = {  # '#' wall, 'S' start, 'G' goal. y grows from the first row on, x from the first column on
    "umaze": ["#####",
              "#S  #",
              "### #",
              "#G  #",
              "#####"],
    "medium": ["########",
               "#S ##  #",
               "#  #   #",
               "##   ###",
               "#  #   #",
               "# #  # #",
               "#   # G#",
               "########"],
    "large": ["############",
              "#S   #     #",
              "# ## # # # #",
              "#      #   #",
              "# #### ### #",
              "#  # #     #",
              "## # # # ###",
              "#  #   # G #",
              "############"],
}  # fmt: skip
TASKS = {  # D4RL's id without -v2: (maze, time limit in steps)
    "antmaze-umaze": ("umaze", 700),
    "antmaze-umaze-diverse": ("umaze", 700),
    "antmaze-medium-play": ("medium", 1000),
    "antmaze-medium-diverse": ("medium", 1000),
    "antmaze-large-play": ("large", 1000),
    "antmaze-large-diverse": ("large", 1000),
}
FILES = {  # D4RL's file of each task's -v2 dataset
    task: f"Ant_maze_{name}_sparse_fixed.hdf5"
    for task, name in {
        "antmaze-umaze": "u-maze_noisy_multistart_False_multigoal_False",
        "antmaze-umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
        "antmaze-medium-play": "big-maze_noisy_multistart_True_multigoal_False",
        "antmaze-medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
        "antmaze-large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
        "antmaze-large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
    }.items()
}
CELL, HEIGHT, REACHED = 4.0, 2.0, 0.5  # metres: a cell's side, the walls' height, what counts as there


def ant_xml() -> Path:
    """The robot's file in the installed d4rl package. Raises ModuleNotFoundError, saying what to do,
    without it."""
    spec = importlib.util.find_spec("d4rl")  # finds the folder and runs nothing in it
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / "locomotion/assets/ant.xml").is_file():
            return path
    raise ModuleNotFoundError(
        "AntMaze's ant.xml is in the d4rl package: pip install --no-deps d4rl==1.1"
    )


class AntMazeEnv(MujocoEnv):
    """The ant in a maze. Observation: 29 float64 numbers (the torso's x, y, z in metres and quaternion,
    8 joint angles in rad; the 14 velocities). Action: 8 numbers in [-1, 1], larger ones are cut. The
    info of reset and of step holds "goal", its x and y, and "success", whether the torso is within 0.5 m
    of it."""

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 10}

    def __init__(
        self, maze: str | Sequence[str] = "umaze", random_start: bool = False, **kwargs: Any
    ) -> None:
        """maze: a name in MAZES, or rows of '#', ' ', one 'S' and at least one 'G', of which a reset
        takes any. random_start: start anywhere in a free cell that is no goal's, as D4RL did to collect
        its diverse data. kwargs: MujocoEnv's render_mode, width, height, camera_name,
        default_camera_config, ... Raises ValueError for a map that is none and ModuleNotFoundError
        without the d4rl package."""
        rows = MAZES.get(maze) if isinstance(maze, str) else maze
        if not (
            isinstance(rows, Sequence)
            and all(isinstance(row, str) for row in rows)
            and len({*map(len, rows)}) == 1
        ):
            rows = ()
        cells = {symbol: [] for symbol in "# SG"}
        for i, row in enumerate(rows):
            for j, symbol in enumerate(row):
                cells.setdefault(symbol, []).append((j * CELL, i * CELL))
        if set(cells) != set("# SG") or len(cells["S"]) != 1 or not cells["G"]:
            wanted = f"one of {', '.join(MAZES)}, or rows of '#', ' ', one 'S' and at least one 'G'"
            raise ValueError(f"maze {maze!r}: expected {wanted}")
        (start,) = cells["S"]
        self.walls, self.goals, free = (
            np.array(cells[key]).reshape(-1, 2) - start for key in ("#", "G", " ")
        )
        self.origin, self.starts = start, np.vstack([free, (0, 0)])
        self.random_start = random_start
        self.goal = self.goals[0]
        corners = (
            np.array([self.walls.min(0), self.walls.max(0)]) if len(self.walls) else np.zeros((2, 2))
        )
        above = {
            "lookat": np.array([*corners.mean(0), 0]),
            "distance": 1.35 * (np.ptp(corners, 0).max() + CELL),
        }
        kwargs.setdefault(
            "default_camera_config", above | {"azimuth": 90.0, "elevation": -90.0}
        )  # x right, y up
        space = gym.spaces.Box(-np.inf, np.inf, (29,), np.float64)
        super().__init__(str(ant_xml()), 5, space, **kwargs)

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """The robot's MJCF with the walls and the goal's disc added (MujocoEnv calls this)."""
        tree = ET.parse(self.fullpath)
        world = tree.find("worldbody")
        for x, y in self.walls:
            row, column = round((y + self.origin[1]) / CELL), round((x + self.origin[0]) / CELL)
            box = {"name": f"block_{row}_{column}", "type": "box", "contype": "1", "conaffinity": "1"}
            box |= {"pos": f"{x} {y} {HEIGHT / 2}", "size": f"{CELL / 2} {CELL / 2} {HEIGHT / 2}"}
            ET.SubElement(world, "geom", box, rgba="0.7 0.5 0.3 1")
        ET.SubElement(
            world,
            "site",
            name="goal",
            type="cylinder",
            pos="0 0 0.02",
            size=f"{REACHED} 0.02",
            rgba="0.9 0.1 0.1 0.6",
        )
        model = mujoco.MjModel.from_xml_string(ET.tostring(tree.getroot(), encoding="unicode"))
        if Version(mujoco.__version__) >= Version("3.5.0"):
            model.geom_margin[:] /= (
                2  # every geom has the same, so their sum is what the larger of the two was
            )
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)

    def _set_action_space(self) -> gym.spaces.Box:
        """[-1, 1] for each motor (MujocoEnv calls this; its own are the torques' bounds)."""
        self.torque_low, self.torque_high = self.model.actuator_ctrlrange.astype(np.float32).T
        self.action_space = gym.spaces.Box(-1.0, 1.0, self.torque_low.shape, np.float32)
        return self.action_space

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])

    def _get_reset_info(self) -> dict[str, Any]:
        """What reset and step give as info."""
        success = bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= REACHED)
        return {"goal": self.goal.copy(), "success": success}

    def reset_model(self) -> np.ndarray:
        """Draw the goal, then the start, from this environment's generator (MujocoEnv.reset has seeded
        it before)."""
        rng = self.np_random
        cell = self.goals[rng.integers(len(self.goals))]
        self.goal = np.maximum(cell + rng.uniform(0, CELL / 4, 2) + CELL / 4 * rng.uniform(0, 0.5, 2), 0)
        self.model.site("goal").pos = (*self.goal, 0.02)
        qpos = self.init_qpos + rng.uniform(-0.1, 0.1, self.model.nq)
        qvel = self.init_qvel + 0.1 * rng.standard_normal(self.model.nv)
        if self.random_start:
            cell = self.starts[rng.integers(len(self.starts))]
            qpos[:2] = np.maximum(cell + CELL / 2 * rng.uniform(0, 0.5, 2), 0)
        qpos[3:7] /= np.linalg.norm(qpos[3:7])
        self.set_state(qpos, qvel)
        return self._observation()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """0.1 s of simulation. Returns observation, reward (1.0 at the goal, else 0.0), whether the goal
        is reached, False (gymnasium.make's wrapper knows the time limit) and info. Raises ValueError for
        an action that is no 8 numbers, NaN counting as none, and RuntimeError where the simulation has
        become unstable."""
        action = np.asarray(action)
        if (
            action.shape != self.action_space.shape
            or action.dtype.kind not in "fiu"
            or np.isnan(action).any()
        ):
            raise ValueError(
                f"an action has to be 8 numbers, none of them NaN, in [-1, 1]; this one is {action!r}"
            )
        low, high = self.torque_low, self.torque_high
        self.do_simulation(low + (np.clip(action, -1, 1) + 1) * 0.5 * (high - low), self.frame_skip)
        if any(self.data.warning[kind].number for kind in UNSTABLE):
            raise RuntimeError(
                f"MuJoCo: the simulation has become unstable (action {action!r}); reset to go on"
            )
        info = self._get_reset_info()
        if self.render_mode == "human":
            self.render()
        return self._observation(), float(info["success"]), info["success"], False, info


UNSTABLE = [
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
]
for task, (maze, limit) in TASKS.items():
    gym.register(f"{task}-v2", f"{__name__}:AntMazeEnv", max_episode_steps=limit, kwargs={"maze": maze})
