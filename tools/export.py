"""Take a trained policy out of a run, for programs that know nothing of this project: one file from raw
states to actions.

    python tools/export.py runs/hopper-medium-local__quickstart__s0-1

writes policy.pt (TorchScript) into the run folder; --out policy.onnx writes ONNX, where the packages
onnx and onnxscript are installed. The input is a batch of states as the simulator gives them [n, state],
float32 or float64 (float32 in ONNX): the normalisation is inside. The output are actions [n, action] in
[-1, 1], to be rescaled where the simulator has other bounds. What was written is loaded again and
compared with the script's own actions before it replaces anything.

    policy = torch.jit.load("policy.pt")
    action = policy(torch.tensor(state)[None])[0].numpy()
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from common import Policy, load_policy, replacing, run
from torch import Tensor

import dmg_iql

CLOSE = 1e-6  # largest difference of an action from the script's


@dataclass
class Args:
    """Which policy, and where to."""

    run: tyro.conf.Positional[Path]
    """run folder, or a checkpoint.pt, of any of the scripts"""
    seed: int | None = None
    """whose policy, of the run's seeds; default: the first"""
    out: Path | None = None
    """file to write, which ends in .pt (TorchScript) or .onnx; default: policy.pt in the run folder"""


def script_actions(path: Path, seed: int | None, states: np.ndarray) -> Tensor:
    """The actions [n, action] for raw states [n, state] of the run's own networks, all seeds side by
    side, as dmg_iql.rollout computes them."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    weights = {key[6:]: value for key, value in saved["agent"].items() if key.startswith("actor.")}
    sizes = [value.shape[-1] for key, value in weights.items() if key.endswith("weight")]
    seeds, first = saved["config"]["num_seeds"], saved["config"]["seed"]
    actor = dmg_iql.Actor([torch.Generator()] * seeds, 1, states.shape[1], *sizes)
    actor.load_state_dict(weights)
    normalised = torch.tensor((states - np.array(saved["mean"])) / np.array(saved["std"])).float()
    return actor(normalised.expand(seeds, *states.shape))[0 if seed is None else seed - first]


def write_torchscript(policy: Policy, states: Tensor, path: Path) -> Tensor:
    """Write the policy as TorchScript; returns the actions of what was written."""
    torch.jit.trace(policy, states).save(path)
    return torch.jit.load(path)(states)


def write_onnx(policy: Policy, states: Tensor, path: Path) -> Tensor:
    """Write the policy as ONNX; returns the actions of what was written. Raises ValueError without the
    packages."""
    try:
        import onnx.reference
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise ValueError(f"{path.suffix} needs onnx and onnxscript ({error}); .pt does not") from None
    names = {"input_names": ["states"], "output_names": ["actions"]}
    names["dynamic_shapes"] = ({0: torch.export.Dim("n")},)
    torch.onnx.export(policy, (states,), path, dynamo=True, external_data=False, verbose=False, **names)
    (actions,) = onnx.reference.ReferenceEvaluator(str(path)).run(None, {"states": states.numpy()})
    return torch.tensor(actions)


@torch.no_grad()
def main(args: Args) -> None:
    """Write, check, say what was written. Raises ValueError and OSError for a bad flag or file."""
    env_id, policy = load_policy(args.run, args.seed)
    path = args.run / "checkpoint.pt" if args.run.is_dir() else args.run
    out = args.out or path.with_name("policy.pt")
    writers = {".pt": write_torchscript, ".onnx": write_onnx}
    if out.suffix not in writers or out.resolve() == path.resolve():
        raise ValueError(f"--out {out}: expected a new file that ends in .pt (TorchScript) or .onnx")
    noise = np.random.default_rng(0).normal(size=(1000, len(policy.mean)))
    states = (policy.mean.numpy() + policy.std.numpy() * noise).astype(np.float32)
    with replacing(out) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that TorchScript has successors
        part.touch()  # fails now rather than in torch, where the folder cannot be written
        written = writers[out.suffix](policy, torch.tensor(states), part)
        difference = (written - script_actions(path, args.seed, states)).abs().max().item()
        if not difference <= CLOSE:
            raise ValueError(f"{out} is not written: its actions are {difference:.1e} off the script's")
    print(f"{out}: {states.shape[1]} numbers of a state of {env_id} to {written.shape[1]} of an action;")
    print(f"largest difference from the script's actions on 1,000 random states: {difference:.1e}")


if __name__ == "__main__":
    run(main, Args)
