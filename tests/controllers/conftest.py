"""The training loop as a controller sees it, for the tests of controllers."""

import collections
import dataclasses
import json

import pytest

from bsjax.controllers import LAG, Observation, state_from_json, state_to_json


@pytest.fixture(scope="session")
def play():
    """A function that returns the updates of a run, whose observations come LAG updates late."""

    def observe_nothing(update):
        return Observation(update, 1.0, None, None)

    def play(controller, observe=observe_nothing, try_branches=None, interruptions=()):
        state, updates, pending = controller.init(), [], collections.deque()
        while True:
            while pending and pending[0].update.update < len(updates) - LAG:
                state = controller.observe(state, pending.popleft())
            if len(updates) in interruptions:
                controller = dataclasses.replace(controller)  # without its caches
                state = state_from_json(controller, json.loads(json.dumps(state_to_json(state), allow_nan=False)))
            if branches := controller.branches(state):
                state = controller.observe_branches(state, try_branches(branches))
            decided = controller.decide(state)
            assert controller.decide(state) == decided  # a decision changes nothing but the state
            update, state = decided
            if update is None:
                return updates
            updates.append(update)
            pending.append(observe(update))

    return play
