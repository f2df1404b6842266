"""What the test programs without pytest share: checks that count, and running test after test. Standard library only."""
import sys
import traceback

failures = []


def check(condition, what):
    if not condition:
        failures.append(what)
        print("FAILED:", what, flush=True)


def run(tests):
    """Runs them all, whatever fails, and ends the program."""
    for test in tests:
        print(test.__name__, flush=True)
        try:
            test()
        except Exception as e:  # the other tests still run
            traceback.print_exc()
            check(False, f"{test.__name__}: {e!r}")
    finish()


def finish():
    print(f"{len(failures)} failures")
    sys.exit(1 if failures else 0)
