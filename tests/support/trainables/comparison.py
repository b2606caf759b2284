"""Comparison of the weights of networks."""

import torch

from ascmodels.students import Student


def same(a: Student, b: Student) -> bool:
    states = a.state_dict(), b.state_dict()
    return list(states[0]) == list(states[1]) and all(torch.equal(states[0][k], states[1][k]) for k in states[0])
