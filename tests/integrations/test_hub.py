"""Models by their Hugging Face name, from a small hub of our own: the real client, small files, never weights."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hyperlapse.shim.models import ModelError, hub, resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 10, "eos_token_id": 9}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": b"weights" * 1000,
}


def _files(name: str) -> list[str]:
    return [each for each in FILES if not (name.endswith("plain") and each == "tokenizer.json")]


class Hub(BaseHTTPRequestHandler):
    """One public model with a tokenizer, one without, one that is gated. `asked` keeps what was asked for."""

    asked: list[str] = []  # noqa: RUF012 - one server at a time, cleared by the fixture

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        type(self).asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            found = self._tree(parts[3]) if "tree" in parts else self._model("/".join(parts[2:4]))
            self._send(json.dumps(found).encode(), body=body, code=self._code(parts[3]))
        elif parts[2:3] == ["resolve"]:
            content = FILES.get(parts[4])
            self._send(content or b"", body=body, code=404 if content is None else self._code(parts[1]))
        else:
            self._send(b"", body=body, code=404)

    def _code(self, name: str) -> int:
        return {"gated": 403, "missing": 404}.get(name, 200)

    def _model(self, name: str) -> object:
        return {"id": name, "sha": COMMIT, "siblings": [{"rfilename": each} for each in _files(name)]}

    def _tree(self, name: str) -> object:
        """What newer clients ask for instead of siblings."""
        return [
            {"type": "file", "path": each, "size": len(FILES[each]), "oid": hashlib.sha1(FILES[each]).hexdigest()}
            for each in _files(name)
        ]

    def _send(self, content: bytes, *, body: bool, code: int) -> None:
        self.send_response(code)
        if code == 403:
            self.send_header("X-Error-Code", "GatedRepo")
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()
        thread.join()


def resolved(name: str, endpoint: str, home: Path, *, offline: bool = False) -> dict[str, object]:
    """What a process with this hub makes of a name: the client reads its environment when it is imported."""
    pytest.importorskip("huggingface_hub", reason="the hub's client is the launcher's dependency")
    code = (
        "import json, sys; from hyperlapse.shim.models import ModelError, resolve_model\n"
        "try:\n    model = resolve_model(sys.argv[1])\n"
        "except ModelError as error:\n    print(json.dumps({'error': str(error)}))\n"
        "else:\n    print(json.dumps({'name': model.name, 'source': model.source, 'bundled': model.bundled,"
        " 'dummy': model.dummy_tokenizer, 'files': sorted(p.name for p in model.directory.iterdir())}))"
    )
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "hf"),
        "HYPERLAPSE_CACHE": str(home / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **({"HF_HUB_OFFLINE": "1"} if offline else {}),
    }
    ran = subprocess.run(
        [sys.executable, "-c", code, name], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, object] = json.loads(ran.stdout)
    return found


def test_configuration_and_tokenizer_but_no_weights(server: str, tmp_path: Path) -> None:
    found = resolved("maker/model", server, tmp_path)
    assert found["source"] == f"hub: maker/model@{COMMIT}"
    assert (found["name"], found["bundled"], found["dummy"]) == ("model", False, False)
    assert found["files"] == ["config.json", "tokenizer.json"]
    assert not any("safetensors" in path for path in Hub.asked)
    again = resolved("maker/model", server, tmp_path, offline=True)
    assert again == found  # from the client's cache


def test_a_model_without_a_tokenizer_gets_one(server: str, tmp_path: Path) -> None:
    found = resolved("maker/plain", server, tmp_path)
    assert found["dummy"] is True
    assert found["source"] == f"hub: maker/plain@{COMMIT}"


@pytest.mark.parametrize(("name", "says"), [("maker/gated", "HF_TOKEN"), ("maker/missing", "no public model")])
def test_what_the_hub_refuses(server: str, tmp_path: Path, name: str, says: str) -> None:
    assert says in str(resolved(name, server, tmp_path)["error"])


def test_without_a_network_bundled_models_answer_to_their_hub_names(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    found = resolved("meta-llama/Llama-3.1-8B", nowhere, tmp_path)
    assert (found["name"], found["bundled"], found["source"]) == ("llama-3.1-8b", True, "bundled")
    error = str(resolved("maker/model", nowhere, tmp_path)["error"])
    assert "cannot be reached" in error
    assert "llama-3.1-8b" in error
    assert "cannot be reached" in str(resolved("somebody/Llama-3.1-8B", nowhere, tmp_path)["error"])


@pytest.mark.parametrize(
    ("text", "is_name"), [("a/b", True), ("a/b.c-d_e", True), ("a", False), ("./a/b", False), ("a/b/c", False)]
)
def test_what_a_hub_name_looks_like(text: str, is_name: bool) -> None:
    assert hub.is_hub_name(text) is is_name


def test_a_path_is_never_looked_up(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_model(str(tmp_path))
