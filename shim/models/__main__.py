"""Lists the bundled models, one a line: name, architecture, layers, hidden size. `hyperlapse models` says more."""

from __future__ import annotations

import json

from hyperlapse.shim.models import bundled_models


def main() -> None:
    for name, folder in bundled_models().items():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers, hidden = config["num_hidden_layers"], config["hidden_size"]
        print(f"{name}\t{config['architectures'][0]}\t{layers} layers\thidden size {hidden}")


if __name__ == "__main__":
    main()
