import dataclasses

import pytest

from sic_jax.cli.train import main
from sic_jax.training.discriminator import DiscriminatorConfig
from sic_jax.training.step_cost import Cost, describe_costs, step_costs
from sic_jax.training.train_config import Stage, TrainConfig


@pytest.mark.thorough
def test_parts_of_the_step(tiny_run: TrainConfig, quick: None) -> None:
    first = Stage(loss=tiny_run.loss, share=0.5)
    loss = dataclasses.replace(
        tiny_run.loss,
        lmbda_perc=(1.0,) * 3,
        adversarial_weight=1.0,
        dists_weight=1.0,
        dists_every=2,
        grain=True,
    )
    network = DiscriminatorConfig(network="alexnet", head_width=8)
    cfg = dataclasses.replace(tiny_run, stages=(first,), loss=loss, discriminator=network)
    costs = list(step_costs(cfg))
    assert [c.part for c in costs] == [
        "step", "g_a, h_a", "rate", "details", "g_s", "LPIPS", "DISTS", "D", "grain", "optimiser",
    ]  # fmt: skip
    whole = costs[0]
    assert all(0 < c.seconds < 60 for c in costs)
    assert all(0 < c.flops < whole.flops for c in costs[1:])
    assert all(0 < c.bytes < whole.bytes for c in costs[1:])
    # Two images and two decodings of one of them, 64 x 64, through VGG16: 1.25 GMAC each; the
    # gradient costs about as much as the decoding again.
    dists = next(c for c in costs if c.part == "DISTS")
    assert dists.flops == pytest.approx(3 * 2 * 1.25e9, rel=0.15)


def test_table() -> None:
    lines = list(
        describe_costs(iter([Cost("step", 0.02, 1.5e12, 2e9), Cost("g_s", 0.005, 0, 1e6)]))
    )
    assert [line.split() for line in lines] == [
        ["part", "ms", "share", "GFLOP", "MB"],
        ["step", "20.00", "100.0%", "1500.0", "2000"],
        ["g_s", "5.00", "25.0%", "0.0", "1"],
    ]


def test_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sic_jax.training.step_cost.step_costs", lambda cfg: iter([Cost("step", 1, 1, 1)])
    )
    main(["smoke", "--cost"])
    assert capsys.readouterr().out.splitlines()[1].startswith("step         1000.00  100.0%")
