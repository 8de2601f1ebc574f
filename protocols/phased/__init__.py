"""The kind `phased`: its rules, their checks, and the interpreter."""
