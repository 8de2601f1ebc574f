"""The contract that every protocol keeps, checked from a file's YAML alone: what `launch.py protocol check` runs.

Expectations come from the YAML as plain data. Nothing here imports the interpreter of a kind
(`tests/test_imports.py` holds it to that): an oracle that shared code with what it checks would share its faults.
"""
