# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from quant.method_names import METHODS, Method, parse_method
from quant.quantize import check_settings
from trilat.errors import InputError


@pytest.mark.parametrize(
    "text, expected",
    [
        ("qat", Method(name="qat")),
        ("ptq", Method(name="ptq", trained=False)),
        ("clip", Method(name="clip:0.1", wmax=0.1)),
        ("clip:0.05", Method(name="clip:0.05", wmax=0.05)),
        ("randbet:0.02", Method(name="randbet:0.02", bit_errors=0.02)),
        ("saq:0.5 + clip", Method(name="saq:0.5+clip:0.1", rho=0.5, wmax=0.1)),
        ("sparse:1e-3", Method(name="sparse:0.001", sparsity=0.001)),
        ("retrain", Method(name="retrain:majority", policy="majority")),
        ("faq", Method(name="qat+faq", faq=True)),
        ("ptq+faq", Method(name="ptq+faq", trained=False, faq=True)),
        ("faq + clip", Method(name="clip:0.1+faq", wmax=0.1, faq=True)),
        ("retrain:ignore+clip", Method(name="retrain:ignore+clip:0.1", policy="ignore", wmax=0.1)),
    ],
)
def test_names_mean_methods(text: str, expected: Method) -> None:
    assert parse_method(text) == expected
    assert parse_method(expected.name) == expected
    assert expected.plain == (text in ("qat", "ptq"))


def test_every_listed_method_parses_alone() -> None:
    for name in METHODS:
        assert name in parse_method(name).name.replace(":", "+").split("+")


def test_faq_is_no_training() -> None:
    method = parse_method("randbet:0.02+faq")
    assert method.training == "randbet:0.02" and not method.plain
    with pytest.raises(InputError, match=r"train it as clip:0\.1"):
        check_settings(8, 8, "clip+faq")


@pytest.mark.parametrize(
    "text, message",
    [
        ("clop", "unknown method 'clop'; did you mean clip"),
        ("", "unknown method ''"),
        ("qat+clip", "method qat combines with faq alone"),
        ("clip+clip:0.2", "names clip twice"),
        ("clip:wide", "'clip:wide' needs a number above 0 behind the colon"),
        ("clip:0", "needs a number above 0"),
        ("clip:inf", "needs a number above 0"),
        ("randbet:0.6", "needs a number above 0 and at most 0.5"),
        ("randbet+saq", "randbet and saq do not combine"),
        ("saq+retrain", "saq and retrain do not combine"),
        ("faq+faq", "names faq twice"),
        ("clip+faq:2", "faq takes no number"),
        ("retrain:vote", "unknown merge policy 'vote'"),
    ],
)
def test_bad_names_are_told(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        parse_method(text)


def test_chips_go_with_retraining_alone() -> None:
    with pytest.raises(InputError, match="method retrain needs the fault map of a chip"):
        check_settings(8, 8, "retrain")
    with pytest.raises(InputError, match="method qat has no use for a chip"):
        check_settings(8, 8, "qat", 1)
    assert check_settings(8, 8, "retrain", 2).policy == "majority"
