"""test_wire.py is a program of its own, which meson runs with the mock worker."""

collect_ignore = ["test_wire.py"]
