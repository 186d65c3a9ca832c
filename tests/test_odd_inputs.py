"""Odd settings get an error of ours, or the right answer: never an error of Python's or JAX's own."""

import inspect

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_inputs import CASES, DATA, NEVER, ODD, SOMETIMES, attempt

import jaxplain as jx
from jaxplain._checks import SETTINGS

# Settings with checks of their own, because their meaning depends on the function or on the input.
OWN = """
argnums at baseline references rules root toward window strides groups n_groups fallback rule channel_axis
reduction layout grid class_tokens of n in_axes devices on_nan penalties code_penalties parametrization
transforms optimizer watch noise scale threshold tolerance k neighbors predict output representation norm
radius step_size shifts axes fill points draw recompute method shift strength center p features pixels degrees
share low high shape decay covariance name upsample similarity layers order quadrature metrics methods make_score
"""


def test_every_setting_has_a_check():
    names = {name for case in CASES.values() for name in inspect.signature(case.function).parameters}
    assert names - {*SETTINGS, *OWN.split(), *DATA} == set()


def _check(name, setting, value):
    try:
        attempt(name, setting, {**NEVER, **SOMETIMES}[value])
    except jx.JaxplainError:
        return
    except Exception as error:
        raise AssertionError(f"{name}({setting}={value})") from error
    assert value not in NEVER, f"{name}({setting}={NEVER[value]!r}) was taken"


@settings(max_examples=1500, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(ODD))
def test_an_odd_setting_is_refused_by_name(odd):
    _check(*odd)


@pytest.mark.rows("name", CASES, ())
def test_all_odd_settings_are_refused_by_name(name):
    for case, setting, value in ODD:
        if case == name:
            _check(case, setting, value)
