"""How much memory a run is going to need: `estimate`, from a `table` or by a `count` on shapes."""
