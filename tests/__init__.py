"""A package, so that test modules can share `tests.small_models`."""
