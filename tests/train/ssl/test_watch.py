"""Curves are those of the digits in the field notes: K 256, ln K 5.545, batches of 64 pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch

from tk.runtime.errors import CheckFailed
from tk.train.ssl.watch import Verdict, Watch, entropies, require_finite

K = 256
LOG_K = math.log(K)
Curve = Callable[[float], tuple[float, float, float]]
"""Share of the run, 0..1 -> loss, entropy, entropy of the mean."""


def line(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def healthy(share: float) -> tuple[float, float, float]:
    """Entropy of the mean stays near what 64 pictures can show, answers grow sharp."""
    return line(5.5, 2.0, share), line(3.0, 0.5, share), 3.9


def no_centre(share: float) -> tuple[float, float, float]:
    """Loss to 1.7 and H(mean) to 1.85 by a quarter of the run, to .55 and .73 by its end."""
    if share < 0.25:
        return line(5.5, 1.7, 4 * share), line(4.0, 1.5, 4 * share), line(4.5, 1.85, 4 * share)
    rest = (share - 0.25) / 0.75
    return line(1.7, 0.55, rest), line(1.5, 0.5, rest), line(1.85, 0.73, rest)


def stuck(share: float) -> tuple[float, float, float]:
    """Loss 5.544 = ln 256 for 700 steps."""
    return 5.544, 5.5, 5.54


def run(watch: Watch, curve: Curve, steps: range, total: int = 700) -> list[Verdict]:
    found: list[Verdict] = []
    for step in steps:
        loss, entropy, mean = curve(step / total)
        found += watch.step(step, loss, entropy=entropy, entropy_of_mean=mean)
    return found


def test_watch__a_healthy_run_is_left_alone() -> None:
    watch = Watch(K, 64, warmup=70)
    assert run(watch, healthy, range(700)) == []
    assert watch.collapsed == ()


def test_watch__no_centre_is_a_constant_collapse_within_the_first_epochs() -> None:
    watch = Watch(K, 64, warmup=70)
    found = run(watch, no_centre, range(700))
    assert [verdict.kind for verdict in found] == ["constant"]
    assert found[0].step < 300
    assert "same of every picture" in found[0].text
    assert "--centering mean or sinkhorn" in found[0].fix
    assert watch.collapsed == ("constant",)


def test_watch__stuck_at_ln_k_is_a_uniform_collapse_after_the_warmup() -> None:
    watch = Watch(K, 64, warmup=300)
    assert run(watch, stuck, range(300)) == []
    (found,) = run(watch, stuck, range(300, 700))
    assert (found.kind, found.step) == ("uniform", 300)
    assert "5.5440" in found.text
    assert "ln K = 5.5452" in found.text
    assert "--preset small" in found.fix


def test_watch__leaving_the_plateau_ends_the_collapse_and_a_relapse_is_told_again() -> None:
    watch = Watch(K, 64, warmup=0, window=5)
    assert [one.kind for one in run(watch, stuck, range(10))] == ["uniform"]
    assert run(watch, healthy, range(400, 410)) == []
    assert watch.collapsed == ()
    assert [one.step for one in run(watch, stuck, range(500, 510))] == [504]


def test_watch__one_outlier_is_no_collapse_and_hides_none() -> None:
    watch = Watch(K, 64, warmup=0, window=5)
    for step in range(20):
        loss = LOG_K if step % 4 else 3.0
        assert watch.step(step, loss, entropy=3.0, entropy_of_mean=4.0) == []


def test_watch__few_pictures_cannot_show_many_prototypes() -> None:
    """65,536 prototypes and 16 pictures: the mean answer has at most ln 16 more than an answer."""

    def sharp(share: float) -> tuple[float, float, float]:
        return line(11, 3, share), 0.3, 0.3 + math.log(12)

    assert run(Watch(65536, 16, warmup=0), sharp, range(700)) == []
    assert [one.kind for one in run(Watch(65536, 4096, warmup=0), sharp, range(700))] == [
        "constant"
    ]


def test_watch__sharp_from_the_start_is_no_collapse() -> None:
    assert run(Watch(K, 64, warmup=0), lambda share: (2.0, 0.1, 0.5), range(700)) == []


def test_watch__rank_below_half_of_the_first_is_a_collapse() -> None:
    watch = Watch(K, 64, warmup=0)
    assert watch.rank(0, 18.8) == []
    assert watch.rank(220, 12.0) == []
    (found,) = watch.rank(440, 4.2)
    assert found.kind == "rank"
    assert "4.2 directions, 18.8 at the start" in found.text
    assert watch.rank(460, 4.0) == []
    assert watch.rank(660, 31.7) == []
    assert watch.collapsed == ()


def test_watch__a_network_of_one_direction_is_collapsed_from_the_start() -> None:
    (found,) = Watch(K, 64, warmup=0).rank(0, 1.1)
    assert found.kind == "rank"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(3))
def test_watch__stops_at_what_is_no_number(bad: float, place: int) -> None:
    figures = [5.0, 3.0, 4.0]
    figures[place] = bad
    name = ("loss", "teacher's entropy", "mean answer")[place]
    with pytest.raises(CheckFailed, match=rf"broke at step 7(.|\n)*{name} {bad}(.|\n)*--resume"):
        Watch(K, 64, warmup=0).step(7, figures[0], entropy=figures[1], entropy_of_mean=figures[2])
    with pytest.raises(CheckFailed, match="effective rank"):
        Watch(K, 64, warmup=0).rank(7, bad)


def test_require_finite__lets_numbers_pass_and_names_the_others() -> None:
    require_finite(0, {"loss": 1e30})
    with pytest.raises(CheckFailed, match=r"koleo_loss inf, ibot_loss nan"):
        require_finite(0, {"loss": 1.0, "koleo_loss": math.inf, "ibot_loss": math.nan})


def test_watch__goes_on_from_its_state() -> None:
    whole, first, second = (Watch(K, 64, warmup=70) for _ in range(3))
    found = run(whole, no_centre, range(700))
    before = run(first, no_centre, range(180))
    first.rank(180, 20.0)
    whole.rank(180, 20.0)
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert before + run(second, no_centre, range(180, 700)) == found
    assert second.state() == whole.state()


def test_entropies__of_known_answers() -> None:
    sharp = torch.eye(8)[:4].reshape(2, 2, 8)
    found = entropies(sharp)
    assert float(found["teacher_entropy"]) == 0
    assert float(found["entropy_of_mean"]) == pytest.approx(math.log(4))
    flat = entropies(torch.full((3, 8), 1 / 8))
    assert float(flat["teacher_entropy"]) == pytest.approx(math.log(8))
    assert float(flat["entropy_of_mean"]) == pytest.approx(math.log(8))
