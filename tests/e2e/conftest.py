"""These are programs of their own, which meson runs with the mock worker."""

collect_ignore = ["test_manners.py", "test_serve_load.py", "test_wire.py"]
