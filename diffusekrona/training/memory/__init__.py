"""How much memory a run is going to need: `estimate`, by a `count` on shapes."""
