"""The presets of all 21 datasets of Table 2 against Table 5 and Appendix C.1, written out here a second time."""

import pytest

import dmg_iql

ROBOTS = ("halfcheetah", "hopper", "walker2d")
NU = {"random": 0.1, "medium": 0.1, "medium-replay": 0.1, "medium-expert": 10.0, "expert": 10.0}
MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
GYM = {"expectile": 0.7, "temperature": 3.0, "weight_clip": 3.0, "eval_every": 20_000, "eval_episodes": 10}
ANTMAZE = {"expectile": 0.9, "temperature": 10.0, "weight_clip": 100.0, "eval_every": 50_000, "eval_episodes": 100}
COMMON = {"lam": 0.25, "gamma": 0.99, "polyak": 0.005, "learning_rate": 3e-4, "batch_size": 256, "hidden_dim": 256}
COMMON |= {"iterations": 1_000_000, "policy_noise": 0.2, "noise_clip": 0.5, "policy_delay": 2}


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("quality", NU)
@pytest.mark.parametrize("kind", ["v2", "local"])
def test_gym(robot: str, quality: str, kind: str) -> None:
    """Locomotion: ν 10 on expert and medium-expert, 0.1 elsewhere; the rest the same for all."""
    args = vars(dmg_iql.resolve(dmg_iql.Args(env_id=f"{robot}-{quality}-{kind}")))
    wanted = COMMON | GYM | {"nu": NU[quality], "normalize_states": True, "antmaze_reward": False}
    assert {key: args[key] for key in wanted} == wanted


@pytest.mark.parametrize("maze", MAZES)
@pytest.mark.parametrize("kind", ["v2", "local"])
def test_antmaze(maze: str, kind: str) -> None:
    """AntMaze: ν 0.5, τ 0.9, α 10, states as they are, rewards 0 and -1."""
    wanted = ANTMAZE | {"nu": 0.5, "normalize_states": False, "antmaze_reward": True}
    assert dmg_iql.preset(f"antmaze-{maze}-{kind}") == wanted
    args = vars(dmg_iql.resolve(dmg_iql.Args(env_id=f"antmaze-{maze}-{kind}")))
    assert {key: args[key] for key in wanted | COMMON} == wanted | COMMON


def test_flags_win_over_presets() -> None:
    """A flag that is given, also one equal to False or 0, replaces the preset."""
    args = dmg_iql.resolve(dmg_iql.Args(env_id="hopper-expert-v2", nu=0.0, normalize_states=False, temperature=0.0))
    assert (args.nu, args.normalize_states, args.temperature, args.expectile) == (0.0, False, 0.0, 0.7)
