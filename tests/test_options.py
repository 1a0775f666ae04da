"""Options: their ranges, and the flags that are made of them."""

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Callable

import pytest

from sic_jax.cli.field_docs import field_docs
from sic_jax.cli.option_flags import add_flags, options_of, phrase
from sic_jax.codec import options as options_module
from sic_jax.codec.container import MAX_SEED
from sic_jax.codec.options import DecodeOptions, EncodeOptions, with_changes
from sic_jax.model.entropy_models.coding_pass import TEMPERATURE_MAX


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EncodeOptions(optimise_steps=-1), "optimise_steps must be at least 0, got -1"),
        (lambda: EncodeOptions(max_bytes=0), "max_bytes must be more than 0, got 0"),
        (lambda: EncodeOptions(max_bpp=float("nan")), "max_bpp must be more than 0, got nan"),
        (lambda: EncodeOptions(min_psnr=0), "min_psnr must be more than 0, got 0"),
        (lambda: EncodeOptions(min_psnr=float("nan")), "min_psnr must be more than 0, got nan"),
        (lambda: EncodeOptions(seed=-1), "seed must be 0 to 4294967295, got -1"),
        (lambda: EncodeOptions(seed=2**32), "seed must be 0 to 4294967295, got 4294967296"),
        (lambda: EncodeOptions(grain=-0.1), "grain must be 0 to 15.9375, got -0.1"),
        (lambda: EncodeOptions(grain=float("nan")), "grain must be 0 to 15.9375, got nan"),
        (lambda: DecodeOptions(seed=2**32), "seed must be 0 to 4294967295, got 4294967296"),
        (lambda: DecodeOptions(temperature=16.1), "temperature must be 0 to 16, got 16.1"),
        (lambda: with_changes(DecodeOptions(), {"seed": -3}), "seed must be 0 to"),
    ],
)
def test_ranges(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_ends_of_the_ranges() -> None:
    EncodeOptions(seed=MAX_SEED, grain=15.9375)
    DecodeOptions(seed=MAX_SEED, temperature=16)
    assert options_module.MAX_TEMPERATURE == TEMPERATURE_MAX


def test_options_are_frozen_and_have_keywords_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EncodeOptions().level = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        DecodeOptions(3)  # type: ignore[call-arg]


def test_with_changes_names_the_fields() -> None:
    assert with_changes(EncodeOptions(level=2), {"seed": 3}) == EncodeOptions(level=2, seed=3)
    with pytest.raises(TypeError) as caught:
        with_changes(EncodeOptions(), {"sed": 3})
    assert str(caught.value) == (
        "EncodeOptions has no field 'sed'; its fields are level, max_bytes, max_bpp, "
        "min_psnr, optimise_steps, seed, grain"
    )


@pytest.mark.parametrize("kind", [EncodeOptions, DecodeOptions])
def test_every_field_has_one_short_docstring(kind: type) -> None:
    docs = field_docs(kind)
    assert list(docs) == [field.name for field in dataclasses.fields(kind)]
    assert all(10 < len(phrase(text)) < 120 for text in docs.values())


def test_flags_are_the_fields() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, EncodeOptions, without=("seed", "grain"))
    add_flags(parser, DecodeOptions, without=("level",))
    args = parser.parse_args([])
    assert options_of(args, EncodeOptions) == EncodeOptions()
    assert options_of(args, DecodeOptions) == DecodeOptions()
    line = "--level 3 --optimise 5 --no-grain --strict --temperature .5 --seed 9 --max-pixels 100"
    args = parser.parse_args(line.split())
    assert options_of(args, EncodeOptions) == EncodeOptions(level=3, optimise_steps=5)
    assert options_of(args, DecodeOptions) == DecodeOptions(
        grain=False, strict=True, temperature=0.5, seed=9, max_pixels=100
    )
    with pytest.raises(ValueError, match=r"temperature must be 0 to 16, got 17\.0"):
        options_of(parser.parse_args(["--temperature", "17"]), DecodeOptions)
    text = " ".join(parser.format_help().split())
    assert "--optimise N steps of latent optimisation: slow, 30 are plenty (default: 0)" in text
    assert "--no-grain leave out the file's grain" in text
    assert "larger ones are an error (default: 200000000)" in text


@dataclasses.dataclass(frozen=True, kw_only=True)
class More(EncodeOptions):
    big_number: float = 2.5
    """100 % of something.

    More about it.
    """


def test_a_new_option_needs_no_line_of_a_command() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, More)
    assert options_of(parser.parse_args(["--big-number", "3"]), More) == More(big_number=3.0)
    text = " ".join(parser.format_help().split())
    assert "--big-number X 100 % of something (default: 2.5)" in text
    assert "More about it" not in text


def test_options_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import sic_jax.cli.main, sic_jax.codec.options, sic_jax.cli.option_flags\n"
        "sys.exit(' '.join({'jax', 'flax', 'numpy', 'PIL'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
