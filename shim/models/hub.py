"""Models by their Hugging Face name: configuration and tokenizer from the hub, never weights.

Why: a real tokenizer and the newest configuration, where there is a network. Only small files are asked for, by name
patterns; whatever else a repository holds stays there. Files lie in the hub client's own cache, so a second run needs no
network. This must happen before a run's clock is frozen: a server outside of the run answers in real time.
"""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

# What describes a model and its tokenizer. No pattern may match a file of weights.
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "chat_template.json",
    "chat_template.jinja",
)

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TIMEOUT_S = 10.0
_PROBE_S = 3.0


class HubError(Exception):
    """A repository that cannot be read; the text says why."""


class NoNetworkError(HubError):
    """The hub cannot be reached, and nothing of the repository is in the cache."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files of a repository at one commit."""

    directory: Path
    commit: str


def is_hub_name(text: str) -> bool:
    """Owner/Name, as the hub spells models."""
    return _NAME.fullmatch(text) is not None


def fetch(name: str) -> Snapshot:
    """The description of a model, from the hub or the client's cache. Raises HubError, NoNetworkError."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise NoNetworkError(
            "the package huggingface_hub is not installed beside Hyperlapse (pip install huggingface_hub)"
        ) from error
    local = None if _reachable() else "the hub cannot be reached"
    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=list(FILES), etag_timeout=_TIMEOUT_S, local_files_only=local is not None
        )
    except errors.GatedRepoError as error:
        raise HubError(
            f"{name} is gated: accept its licence on the hub and set HF_TOKEN to a token of yours"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"the hub has no public model {name} (a private one needs HF_TOKEN)") from error
    except errors.LocalEntryNotFoundError as error:
        raise NoNetworkError(f"{local or 'the hub did not answer'}, and {name} is not in its client's cache") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise NoNetworkError(
            f"the hub did not answer for {name}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        ) from error
    directory = Path(folder)
    if not (directory / "config.json").is_file():
        raise HubError(f"{name} has no config.json on the hub, so no engine could load it")
    return Snapshot(directory, directory.name)


def _reachable() -> bool:
    """Whether a connection to the hub can be opened: its client would try for minutes where there is no network."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy answers for it
    address = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=_PROBE_S):
            return True
    except OSError:
        return False
