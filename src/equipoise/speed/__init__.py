"""How fast the engine is: what `equipoise plan` expects and what `equipoise bench` measures."""
