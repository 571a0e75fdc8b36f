"""Control: pieces of trajectories, a policy in a simulator, runs and faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from examples import reinforcement_learning as example

from trimtab.core.errors import InputError
from trimtab.tasks import lookup
from trimtab.tasks.reinforcement_learning import Policy, imported
from trimtab.tune.config import Config
from trimtab.tune.run import tune

TASK = "reinforcement-learning"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("control")
    example.prepare(folder)
    return folder


@pytest.fixture
def model(made: Path) -> hf.PreTrainedModel:
    return hf.DecisionTransformerModel.from_pretrained(made / "models" / "policy").eval()


def test_the_loss_is_of_each_piece_by_itself(made: Path, model: hf.PreTrainedModel) -> None:
    """Against the model on every piece alone, of trajectories that differ in length."""
    import datasets

    task = lookup(TASK, {"context": 5, "scale": 2.0})
    rows = example.trajectories(3)
    short = {name: cells[:7] for name, cells in rows[1].items()}
    rows[1] = short
    processor = task.processor(str(made / "models" / "policy"))
    encoded = task.encode(datasets.Dataset.from_list(rows), processor, [], 100)
    batch = task.collate(encoded.examples, processor)
    with torch.no_grad():
        loss, said = task.loss(model, batch)
        errors = []
        for row in rows:
            steps = len(row["states"])
            to_go = [sum(row["rewards"][t:]) / 2 for t in range(steps)]
            each = []
            for begin in range(0, steps, 5):
                part = slice(begin, begin + 5)
                given = {"states": row["states"][part], "actions": row["actions"][part]}
                given["returns_to_go"] = [[x] for x in to_go[part]]
                told = {name: torch.tensor([cells]) for name, cells in given.items()}
                times = torch.arange(steps)[None, part]
                found = model(**told, timesteps=times).action_preds
                each += (found - told["actions"])[0].square().mean(-1).tolist()
            errors.append(np.mean(each))
    assert float(loss) == pytest.approx(np.mean(errors), rel=1e-5)
    answers = task.answers(
        encoded.restore(task.rows_of(said, batch)), datasets.Dataset.from_list(rows), [], processor
    )
    assert [one[0] for one in answers] == pytest.approx(errors, rel=1e-5)


def test_a_policy_sees_what_it_did_and_gained(model: hf.PreTrainedModel) -> None:
    """Its third action against one pass over the same history."""
    policy = Policy(model, torch.tensor([-2.0, -4.0]), context=8, scale=10.0)
    states = np.random.default_rng(0).normal(size=(3, 2, 2)).astype(np.float32)
    rewards = [None, np.array([-5.0, -1.0]), np.array([-3.0, -2.0])]
    did = [policy(state, reward) for state, reward in zip(states, rewards, strict=True)]
    with torch.no_grad():
        given = {"states": torch.from_numpy(states).transpose(0, 1)}
        given["actions"] = torch.tensor(np.stack([*did[:2], np.zeros_like(did[0])], 1))
        given["returns_to_go"] = torch.tensor([[-2.0, -1.5, -1.2], [-4.0, -3.9, -3.7]])[..., None]
        found = model(**given, timesteps=torch.arange(3).expand(2, -1)).action_preds[:, -1]
    np.testing.assert_allclose(did[2], found.numpy(), rtol=1e-4, atol=1e-6)


def test_the_next_action_is_of_the_last_steps(made: Path, model: hf.PreTrainedModel) -> None:
    """As a policy in a simulator would say it, wherever pieces of training would be cut."""
    import datasets

    task, rows, expected = lookup(TASK, {"context": 5, "scale": 2.0}), [], []
    for steps, whole in zip((3, 11, 12), example.trajectories(3), strict=True):
        row = {name: whole[name][: steps - 1] for name in ("actions", "rewards")}
        rows.append({**row, "states": whole["states"][:steps], "target": 4.0})
        to_go = [4.0 + sum(row["rewards"][t:]) for t in range(steps)]
        part = slice(max(0, steps - 5), steps)
        none = [[0.0] * len(row["actions"][0])]
        given = {"states": rows[-1]["states"], "actions": row["actions"] + none}
        given["returns_to_go"] = [[x / 2] for x in to_go]
        told = {name: torch.tensor([cells[part]]) for name, cells in given.items()}
        with torch.no_grad():
            found = model(**told, timesteps=torch.arange(steps)[None, part]).action_preds
        expected.append(found[0, -1].tolist())
    data = datasets.Dataset.from_list(rows)
    processor = task.processor(str(made / "models" / "policy"))
    encoded = task.encode(data, processor, None, 100)
    with torch.no_grad():
        said = task.ask(model, task.collate(encoded.examples, processor), processor)
    told = task.told(encoded.restore(said), data, [], processor)
    assert [one["step"] for one in told] == [3, 11, 12]
    for one, action in zip(told, expected, strict=True):
        assert one["action"] == pytest.approx(action, abs=1e-5)


def test_a_run_without_a_simulator(made: Path, quick: Callable[..., Config]) -> None:
    settings = {"model": made / "models" / "policy", "data": made / "data" / "pushes.jsonl"}
    told = tune(quick(**settings, task=TASK, lr=1e-2, max_steps=12), quiet=True)
    assert told["metric"] == "action_error"
    assert told["gain_over"]["base"]["high"] < 0


def test_the_return_by_the_command_line(made: Path, tmp_path: Path) -> None:
    given = {"task": TASK, "model": "models/policy", "data": "data/pushes.jsonl", "lr": 0.01}
    given |= {"out": tmp_path / "run", "max-steps": 12, "batch-size": 8}
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    flags += ["--task-arg", "context=8", "--task-arg", "simulator=line:heavy"]
    places = {"cwd": made, "env": {**os.environ, "PYTHONPATH": "."}, "check": False}
    command = [sys.executable, "-m", "trimtab"]
    options = {**places, "capture_output": True, "text": True}
    told = subprocess.run([*command, "tune", *flags, "--json"], **options)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["metric"] == "episode_return"
    assert found["higher_is_better"]
    assert found["metrics"]["action_error"]["adapted"] < found["metrics"]["action_error"]["base"]
    said = subprocess.run(
        [*command, "predict", str(tmp_path / "run"), "--data", "new.jsonl"], **options
    )
    assert said.returncode == 0, said.stderr
    answer = json.loads(said.stdout)
    assert answer["step"] == 2
    assert -1 <= answer["action"][0] <= 1


FAULTS = [
    ({"actions": [[0.0]] * 2}, "line 2: 3 states, and 2 actions"),
    ({"states": [[0.0]] * 3}, "line 2: states of 1 numbers, and '.*' takes 2"),
    ({"states": [[0.0, 1.0], [1.0], [1.0, 2.0]]}, "line 2: the states have 2 numbers in row 1, 1"),
    ({"rewards": [0.0, "x", 1.0]}, "line 2: the rewards, number 2, is 'x'"),
]


@pytest.mark.parametrize(("wrong", "message"), FAULTS)
def test_faults_are_told_with_their_line(
    made: Path, quick: Callable[..., Config], tmp_path: Path, wrong: dict, message: str
) -> None:
    good = {"states": [[0.0, 1.0]] * 3, "actions": [[0.5]] * 3, "rewards": [0.0, 1.0, 2.0]}
    rows = [good, {**good, **wrong}]
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    with pytest.raises(InputError, match=message):
        tune(quick(model=made / "models" / "policy", data=path, task=TASK), quiet=True)


@pytest.mark.parametrize(
    ("place", "message"),
    [("nowhere:f", "cannot be imported"), ("json:nothing", "has no function"), ("json", "has no")],
)
def test_simulators_that_are_none(place: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        imported(place)
