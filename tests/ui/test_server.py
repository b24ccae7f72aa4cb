"""Who is let in, and what they are sent."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
from fastapi.testclient import TestClient
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.ui.__main__ import UiSettings, check_host
from diffusekrona.ui.places import Workspace
from diffusekrona.ui.server import make_app

HERE = "http://127.0.0.1:7860"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "work/data").mkdir(parents=True)
    (tmp_path / "work/outputs").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "work/data/a b.png")
    (tmp_path / "work/outputs/page.html").write_text("<script>alert(1)</script>")
    (tmp_path / "work/outputs/a.safetensors").write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return Workspace(tmp_path / "work")


def test_files_of_the_workspace_alone(workspace: Workspace) -> None:
    client = TestClient(make_app(workspace, "127.0.0.1", None), base_url=HERE)
    assert client.get("/files/data/a%20b.png").status_code == 200
    for name in (
        "../secret.png",
        "%2e%2e/secret.png",
        "data/..%2f..%2fsecret.png",
        "/etc/hostname",
    ):
        assert client.get(f"/files/{name}").status_code == 404


def test_reports_run_no_scripts_and_weights_are_downloads(workspace: Workspace) -> None:
    client = TestClient(make_app(workspace, "127.0.0.1", None), base_url=HERE)
    page = client.get("/files/outputs/page.html")
    policy = page.headers["content-security-policy"]
    assert "sandbox;" in policy and "default-src 'none'" in policy and "script" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    weights = client.get("/files/outputs/a.safetensors")
    assert weights.headers["content-disposition"].startswith("attachment")


def test_other_sites_and_other_names_are_kept_out(workspace: Workspace) -> None:
    client = TestClient(make_app(workspace, "127.0.0.1", None), base_url=HERE)
    name = "/files/data/a%20b.png"
    assert client.get(name, headers={"Host": "attacker.example"}).status_code == 403
    assert client.get(name, headers={"Origin": "http://attacker.example"}).status_code == 403
    assert client.get(name, headers={"Origin": HERE}).status_code == 200


def test_the_password_guards_everything(workspace: Workspace) -> None:
    client = TestClient(make_app(workspace, "0.0.0.0", "secret"), base_url="http://box:7860")
    for path in ("/", "/files/data/a%20b.png", "/gradio_api/upload"):
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("me", "wrong")).status_code == 401
        assert client.get(path, headers={"Authorization": "Basic !"}).status_code == 401
    assert client.get("/files/data/a%20b.png", auth=("me", "secret")).status_code == 200


def test_other_machines_need_a_password() -> None:
    check_host(UiSettings())
    check_host(UiSettings(host="0.0.0.0", password="secret"))
    with pytest.raises(UserError, match="--password"):
        check_host(UiSettings(host="0.0.0.0"))
