"""Settings: which layer wins, and that nothing unknown is taken."""

from pathlib import Path
from typing import Any

import pytest

from cxls.settings import COMMANDS, AnalyzeSettings, BadSettings, DemoSettings, ReplaySettings, known_names, resolve


def toml(folder: Path, text: str) -> Path:
    path = folder / "cxls.toml"
    path.write_text(text)
    return path


def refused(model: Any, given: dict[str, Any], config: Path | None = None, **environment: str) -> str:
    with pytest.raises(BadSettings) as error:
        resolve(model, given, config, environment)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_defaults_serve_where_nothing_is_said() -> None:
    resolved = resolve(AnalyzeSettings, {}, None, {})
    assert resolved.settings.min_peaks == 5
    assert set(resolved.origin.values()) == {"default"}


def test_the_file_wins_over_the_default(tmp_path: Path) -> None:
    resolved = resolve(AnalyzeSettings, {}, toml(tmp_path, "min_peaks = 7"), {})
    assert resolved.settings.min_peaks == 7
    assert "cxls.toml" in resolved.origin["min_peaks"]


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    resolved = resolve(AnalyzeSettings, {}, toml(tmp_path, "min_peaks = 7\nbatch = 3"), {"CXLS_MIN_PEAKS": "8"})
    assert (resolved.settings.min_peaks, resolved.settings.batch) == (8, 3)
    assert resolved.origin["min_peaks"] == "environment"


def test_the_command_line_wins_over_all(tmp_path: Path) -> None:
    given = {"min_peaks": "9", "batch": None}
    resolved = resolve(AnalyzeSettings, given, toml(tmp_path, "min_peaks = 7"), {"CXLS_MIN_PEAKS": "8"})
    assert resolved.settings.min_peaks == 9
    assert resolved.origin["min_peaks"] == "command line"
    assert resolved.origin["batch"] == "default", "an option that was not given is no value"


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "min_peaks = 7")
    assert resolve(AnalyzeSettings, {}, None, {"CXLS_CONFIG": str(path)}).settings.min_peaks == 7


def test_one_file_serves_every_command(tmp_path: Path) -> None:
    path = toml(tmp_path, 'min_peaks = 7\nrate = 3.0\nheader_detail = "all"')
    assert resolve(AnalyzeSettings, {}, path, {}).settings.min_peaks == 7
    assert resolve(DemoSettings, {}, path, {}).settings.rate == 3.0
    assert resolve(ReplaySettings, {}, path, {}).settings.header_detail == "all"


def test_an_unknown_key_of_the_file_is_named(tmp_path: Path) -> None:
    text = refused(AnalyzeSettings, {}, toml(tmp_path, "min_peeks = 7"))
    assert "min_peeks" in text
    assert "cxls.toml" in text


@pytest.mark.parametrize("table", ["[analyze]\nmin_peaks = 7", "[[x]]\na = 1"])
def test_a_table_in_the_file_is_refused(tmp_path: Path, table: str) -> None:
    assert "unknown setting" in refused(AnalyzeSettings, {}, toml(tmp_path, table))


def test_an_unknown_name_in_the_environment_is_named() -> None:
    assert "CXLS_MIN_PEEKS" in refused(AnalyzeSettings, {}, CXLS_MIN_PEEKS="7")


def test_names_for_tests_are_reserved() -> None:
    environment = {"CXLS_TEST_REQUIRE": "chromium", "CXLS_TEST_ANYTHING": "1", "OTHER_NAME": "2"}
    assert resolve(AnalyzeSettings, {}, None, environment).settings == AnalyzeSettings()  # type: ignore[call-arg]


@pytest.mark.parametrize("content", ["min_peaks =", "= 3", "\x00", "min_peaks = 1\nmin_peaks = 2"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: str) -> None:
    assert "not TOML" in refused(AnalyzeSettings, {}, toml(tmp_path, content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "none.toml" in refused(AnalyzeSettings, {}, tmp_path / "none.toml")


def test_a_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in refused(AnalyzeSettings, {}, tmp_path)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
    assert "not TOML" in refused(AnalyzeSettings, {}, path)


def test_a_file_that_would_take_hours_is_refused(tmp_path: Path) -> None:
    digits = refused(AnalyzeSettings, {}, toml(tmp_path, "min_peaks = " + "9" * 5000))
    assert "not TOML" in digits
    assert len(digits) < 400
    assert "larger than 64 kB" in refused(AnalyzeSettings, {}, toml(tmp_path, "a" + ".a" * 100_000 + " = 1"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_peaks", "0"), ("min_peaks", "many"), ("threshold", "1.5"), ("threshold", "nan"), ("hit_rule", "maybe"),
     ("batch", "257"), ("series", "0"), ("queue_mib", "1"), ("on_full", "explode"), ("device", "tpu")],
)  # fmt: skip
def test_a_value_without_sense_is_refused_by_the_name_it_was_given_under(tmp_path: Path, name: str, value: str) -> None:
    assert "--" + name.replace("_", "-") in refused(AnalyzeSettings, {name: value})
    assert "CXLS_" + name.upper() in refused(AnalyzeSettings, {}, **{"CXLS_" + name.upper(): value})
    assert name in refused(AnalyzeSettings, {}, toml(tmp_path, f'{name} = "{value}"'))


def test_every_setting_has_a_description() -> None:
    for model in COMMANDS.values():
        for name, field in model.model_fields.items():
            assert field.description, name


def test_a_name_shared_by_commands_is_one_setting() -> None:
    assert {"listen", "on_full", "stream", "frames"} <= known_names()
