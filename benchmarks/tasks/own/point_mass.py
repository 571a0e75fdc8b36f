"""A mass on a plane that a force brings to the origin, many side by side: where a policy is tried.

    v' = v + Δt (gain a - friction v + (0, gravity))        p' = p + Δt v'
    r  = -(|p'|² + 0.05 |a|²)                               a in [-1, 1]², Δt = 0.1, 40 steps

A policy that knows one dynamics meets another: nearly no friction, a stronger motor, and a pull
downwards that needs a steady answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STEPS, DT, COST = 40, 0.1, 0.05

Act = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


@dataclass(frozen=True)
class Dynamics:
    gain: float
    friction: float
    gravity: float

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        """(n, 4): place and speed."""
        place, speed = state[:, :2], state[:, 2:]
        pull = np.array([0.0, self.gravity])
        speed = speed + DT * (self.gain * action - self.friction * speed + pull)
        return np.concatenate([place + DT * speed, speed], axis=1)


KNOWN = Dynamics(gain=1.0, friction=0.8, gravity=0.0)
NEW = Dynamics(gain=1.6, friction=0.05, gravity=-0.8)


def rollout(dynamics: Dynamics, first: np.ndarray, act: Act) -> tuple[np.ndarray, ...]:
    """States (n, 40, 4), actions (n, 40, 2), rewards (n, 40)."""
    state, reward, seen = first, None, []
    for _ in range(STEPS):
        action = np.clip(act(state, reward), -1, 1)
        after = dynamics.step(state, action)
        reward = -(np.square(after[:, :2]).sum(1) + COST * np.square(action).sum(1))
        seen.append((state, action, reward))
        state = after
    states, actions, rewards = (np.stack(one, axis=1) for one in zip(*seen, strict=True))
    return states, actions, rewards


def new(first: np.ndarray, act: Act) -> np.ndarray:
    """What a policy gains under the new dynamics (n,)."""
    return rollout(NEW, first, act)[2].sum(1)


def controlled(dynamics: Dynamics, n: int, seed: int) -> tuple[np.ndarray, ...]:
    """Trajectories of controllers that know the dynamics, some of them well tuned:

    a = (-k p - d v - pull) / gain + noise,    k from 1 to 4, d from 0.5 to 3
    """
    rng = np.random.default_rng(seed)
    first = np.concatenate([rng.uniform(-1.5, 1.5, (n, 2)), rng.normal(0, 0.3, (n, 2))], axis=1)
    stiff, damped = rng.uniform(1, 4, (n, 1)), rng.uniform(0.5, 3, (n, 1))
    pull = np.array([0.0, dynamics.gravity])

    def act(state: np.ndarray, reward: np.ndarray | None) -> np.ndarray:
        force = -stiff * state[:, :2] - damped * state[:, 2:] - pull
        return force / dynamics.gain + rng.normal(0, 0.1, (n, 2))

    return rollout(dynamics, first, act)
