"""The presets of all 21 datasets of Table 2 against Table 5 and Appendix C.1, written out here a second
time."""

from types import ModuleType

import pytest

ROBOTS = ("halfcheetah", "hopper", "walker2d")
NU = {"random": 0.1, "medium": 0.1, "medium-replay": 0.1, "medium-expert": 10.0, "expert": 10.0}
MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
COMMON = {
    "lam": 0.25,
    "gamma": 0.99,
    "polyak": 0.005,
    "learning_rate": 3e-4,
    "batch_size": 256,
    "hidden_dim": 256,
}
COMMON |= {"iterations": 1_000_000, "policy_noise": 0.2, "noise_clip": 0.5, "policy_delay": 2}
GYM = {"temperature": 3.0, "weight_clip": 3.0, "eval_every": 20_000, "eval_episodes": 10}
GYM |= {"normalize_states": True, "antmaze_reward": False}
ANTMAZE = {"temperature": 10.0, "weight_clip": 100.0, "eval_every": 50_000, "eval_episodes": 100}
ANTMAZE |= {"normalize_states": False, "antmaze_reward": True, "nu": 0.5}
OWN_GYM = {
    "dmg_iql": {"expectile": 0.7},
    "dmg_xql": {"beta": 5.0, "gumbel_clip": 7.0},
    "dmg_sql": {"alpha": 2.0},
}
OWN_ANTMAZE = OWN_GYM | {"dmg_iql": {"expectile": 0.9}}


def check(script: ModuleType, env_id: str, wanted: dict) -> None:
    """The flags of a job on env_id, resolved, have these values."""
    args = script.Args(env_id=env_id, device="cpu")
    assert script.resolve(args) is None
    assert {key: getattr(args, key) for key in wanted} == wanted


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("quality", NU)
@pytest.mark.parametrize("kind", ["v2", "local"])
def test_gym(script: ModuleType, robot: str, quality: str, kind: str) -> None:
    """Locomotion: ν 10 and SQL's α 5 on expert and medium-expert, 0.1 and 2 elsewhere; the rest the same
    for all."""
    wanted = COMMON | GYM | OWN_GYM[script.__name__] | {"nu": NU[quality]}
    if "alpha" in wanted and NU[quality] == 10.0:
        wanted["alpha"] = 5.0
    check(script, f"{robot}-{quality}-{kind}", wanted)


@pytest.mark.parametrize("maze", MAZES)
@pytest.mark.parametrize("kind", ["v2", "local"])
def test_antmaze(script: ModuleType, maze: str, kind: str) -> None:
    """AntMaze: ν 0.5, τ 0.9, α 10, states as they are, rewards 0 and -1."""
    check(script, f"antmaze-{maze}-{kind}", COMMON | ANTMAZE | OWN_ANTMAZE[script.__name__])


def test_own_data(script: ModuleType) -> None:
    """Any other Gymnasium id has the presets of medium."""
    for env_id in ("Pendulum-v1", "Ant-v5"):
        check(script, env_id, COMMON | GYM | OWN_GYM[script.__name__] | {"nu": 0.1})


def test_flags_win_over_presets(script: ModuleType) -> None:
    """A flag that is given, also one equal to False or 0, replaces the preset, and what was resolved
    stays."""
    given = {"nu": 0.0, "normalize_states": False, "temperature": 0.0, "antmaze_reward": True}
    args = script.Args(env_id="hopper-expert-v2", device="cpu", **given)
    for _ in range(2):
        script.resolve(args)
        assert {key: getattr(args, key) for key in given} == given
        assert (args.weight_clip, args.eval_every) == (3.0, 20_000)


def test_no_flag_is_left_open(script: ModuleType) -> None:
    """Every None has a preset but for the dataset's path, which loading it sets."""
    for env_id in ("hopper-medium-v2", "antmaze-umaze-v2", "Pendulum-v1"):
        args = script.Args(env_id=env_id)
        script.resolve(args)
        assert [key for key, value in vars(args).items() if value is None] == ["dataset_path"]
        assert args.device in ("cpu", "cuda")
